"""What a user gets wrong at a recipe is told in one line with the nearest right name, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.cli import main

TINY = str(Path(__file__).parents[1] / "runs" / "tiny.yaml")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["--trainer.max_epoch", "3"], "there is no key trainer.max_epoch; did you mean 'trainer.max_epochs'?"),
        (["--model.nrom", "group"], "there is no key nrom; did you mean 'norm'?"),
        (["--model.net.widht", "12"], "there is no key widht; did you mean 'width'?"),
        (["--model.norm", "grup"], "unknown norm 'grup'; did you mean 'group'?"),
        (["--model.net.normalize_streams", "bth"], "allowed are none, skip, up, both; did you mean 'both'?"),
        (["--trainer.max_epochs", "abc"], "trainer.max_epochs is 'abc'; allowed is int."),
        (["--model", "ics_apps.tasks.segmentation.SegmentatonTask"], "did you mean 'SegmentationTask'?"),
        (["--trainer.callbacks+", "os.system"], "a recipe may not name os.system"),
        (["--checkpoint.monitor", "val/dise"], "did you mean 'val/dice'?"),
        (["--data.size", "0"], "patch_size is 0; allowed are 1 and above."),
        (["--init_from", "nowhere.ckpt"], "--init_from is nowhere.ckpt, which does not exist."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_one_line_and_exit_code_2(overrides: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", TINY, "--out", "run", *overrides]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert "Traceback" not in error
    told = [text for text in error.splitlines() if text.startswith("ics-apps:")]
    assert len(told) == 1, error


def test_a_wrong_key_in_a_file_is_told_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text("trainer:\n  max_epoch: 3\n")
    assert main(["fit", TINY, "own.yaml", "--out", "run"]) == 2
    assert "there is no key trainer.max_epoch; did you mean 'trainer.max_epochs'?" in capsys.readouterr().err


def test_bad_data_leaves_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "segmentation/isbi2012", "--data.root", str(tmp_path / "nowhere"), "--out", "run"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_users_own_class_needs_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_callbacks.py").write_text(
        "from lightning.pytorch import Callback\nclass Mine(Callback):\n    pass\n"
    )
    command = ["fit", TINY, "--out", "run", "--trainer.max_epochs", "1", "--trainer.callbacks+", "my_callbacks.Mine"]
    assert main(command) == 2
    assert "--allow my_callbacks" in capsys.readouterr().err
    assert main([*command, "--allow", "my_callbacks"]) == 0
