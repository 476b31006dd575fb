from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.runs.directory import RunDirectoryError, best_checkpoint, fresh_run_dir, newest_run_dir


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("{}")
    return path


def test_a_first_run_is_number_one_and_a_later_one_the_next(tmp_path: Path) -> None:
    assert fresh_run_dir("segmentation/base") == Path("runs/segmentation/base/1")
    _run(Path("runs/segmentation/base/1"))
    _run(Path("runs/segmentation/base/7"))
    assert fresh_run_dir("segmentation/base") == Path("runs/segmentation/base/8")


def test_a_given_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="already holds a run: continue it with --ckpt_path last"):
        fresh_run_dir("x", _run(tmp_path / "out"))


def test_the_newest_run_is_the_highest_number_that_holds_one() -> None:
    assert newest_run_dir("x") is None
    _run(Path("runs/x/9"))
    _run(Path("runs/x/10"))
    Path("runs/x/11").mkdir()
    assert newest_run_dir("x") == Path("runs/x/10")


@pytest.mark.parametrize("name", ["../evil", "/abs", "a b", "", "a/../../b", "x" * 90])
def test_names_that_cannot_be_folders_are_refused(name: str) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be a folder"):
        fresh_run_dir(name)


def test_a_run_without_a_best_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no checkpoints/best\.ckpt yet: train first"):
        best_checkpoint(tmp_path)
