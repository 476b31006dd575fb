"""Every norm of the registry trains the segmentation recipe by its name, or is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.cli import main
from ics_apps.norms import list_norms, norm_entry

TINY = str(Path(__file__).parents[2] / "runs" / "tiny.yaml")


@pytest.mark.parametrize("norm", list_norms())
def test_a_norm_is_a_word_on_the_command_line(
    norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["fit", TINY, "--out", "run", "--model.norm", norm, "--model.net.width", "8", "--trainer.max_epochs", "1"]
    entry = norm_entry(norm)
    # A skip stream comes from no layer whose weight could be normalised.
    streams = "up" if entry.acts_on_weight else "both"
    code = main([*command, "--trainer.limit_train_batches", "2", "--model.net.normalize_streams", streams])
    error = capsys.readouterr().err
    if 2 not in entry.dims:
        assert code == 2
        assert f"norm '{norm}' is not defined for dim 2" in error
        return
    if entry.needs_condition:  # which this task has none to give
        assert code == 2
        assert "needs a condition and got none" in error
        return
    assert code == 0, error
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
