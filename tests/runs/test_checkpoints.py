from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ics_apps.runs.checkpoints import AtomicCheckpointIO, CheckpointError, newest_readable, read_checkpoint

STATE = {
    "loops": {"fit_loop": {
        "epoch_loop.state_dict": {"_batches_that_stepped": 12}, "epoch_progress": {"current": {"completed": 3}},
    }},
    "state_dict": {"w": torch.ones(3)},
}  # fmt: skip


def _save(run: Path, name: str, step: int = 12) -> Path:
    path = run / "checkpoints" / name
    state = {**STATE, "loops": {"fit_loop": {**STATE["loops"]["fit_loop"]}}}  # type: ignore[dict-item]
    state["loops"]["fit_loop"]["epoch_loop.state_dict"] = {"_batches_that_stepped": step}  # type: ignore[index]
    AtomicCheckpointIO().save_checkpoint(state, path)
    return path


def test_a_saved_checkpoint_is_read_back_equal(tmp_path: Path) -> None:
    path = _save(tmp_path, "last.ckpt")
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"], torch.ones(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_the_newest_readable_checkpoint_is_last(tmp_path: Path) -> None:
    _save(tmp_path, "last.ckpt", 12)
    _save(tmp_path, "previous.ckpt", 8)
    point = newest_readable(tmp_path)
    assert point is not None
    assert (point.path.name, point.step, point.epoch, point.skipped) == ("last.ckpt", 12, 3, ())


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_broken_last_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    last = _save(tmp_path, "last.ckpt", 12)
    _save(tmp_path, "previous.ckpt", 8)
    content = {"truncated": last.read_bytes()[:-200], "empty": b"", "garbage": b"\x00" * 500}[damage]
    last.write_bytes(content)
    point = newest_readable(tmp_path)
    assert point is not None
    assert (point.path.name, point.step) == ("previous.ckpt", 8)
    assert "last.ckpt could not be read" in point.skipped[0]


def test_when_no_checkpoint_can_be_read_the_error_names_them(tmp_path: Path) -> None:
    _save(tmp_path, "last.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read: .*last\.ckpt could not be read"):
        newest_readable(tmp_path)


def test_a_run_without_checkpoints_has_no_resume_point(tmp_path: Path) -> None:
    assert newest_readable(tmp_path) is None


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "run": print}, path)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt could not be read"):
        read_checkpoint(path)


def test_weights_alone_are_no_resume_point(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="--init_from"):
        newest_readable(tmp_path)


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path, "last.ckpt", 12)

    def die(_state: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, "last.ckpt", 16)
    monkeypatch.undo()
    point = newest_readable(tmp_path)
    assert point is not None
    assert (point.path, point.step) == (path, 12)
