from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.cli.command import CommandError, parse_command
from ics_apps.runs.directory import RunDirectoryError


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _finished_run(path: Path) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("{}")
    (path / "checkpoints/best.ckpt").write_bytes(b"x")
    return path


def test_own_flags_are_taken_and_the_rest_is_left_to_the_recipe() -> None:
    command = parse_command("run", ["segmentation/base", "--out", "here", "--model.norm", "group", "--allow", "mine"])
    assert command is not None
    assert command.run_dir == Path("here")
    assert command.overrides == ("--model.norm", "group")
    assert command.allow == ("mine",)
    assert not command.resume


def test_overlays_are_merged_behind_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("{}")
    command = parse_command("fit", ["segmentation/isbi2012", "own.yaml"])
    assert command is not None
    assert [path.name for path in command.configs] == ["base.yaml", "isbi2012.yaml", "own.yaml"]
    assert command.run_dir == Path("runs/segmentation/isbi2012-own/1")


def test_last_without_any_run_starts_one() -> None:
    command = parse_command("run", ["segmentation/base", "--ckpt_path", "last"])
    assert command is not None
    assert command.resume
    assert command.run_dir == Path("runs/segmentation/base/1")


def test_last_takes_the_newest_run() -> None:
    _finished_run(Path("runs/segmentation/base/3"))
    command = parse_command("run", ["segmentation/base", "--ckpt_path=last"])
    assert command is not None
    assert command.run_dir == Path("runs/segmentation/base/3")


def test_an_earlier_run_can_be_evaluated_by_its_directory() -> None:
    run = _finished_run(Path("somewhere/run"))
    command = parse_command("predict", [str(run), "--data.predict_root", "new"])
    assert command is not None
    assert command.configs == (run / "config.yaml",)
    assert command.checkpoint == run / "checkpoints/best.ckpt"
    assert command.run_dir == run


def test_a_new_run_with_an_earlier_configuration_gets_its_own_directory() -> None:
    _finished_run(Path("runs/x/1"))
    command = parse_command("run", ["runs/x/1"])
    assert command is not None
    assert command.run_dir == Path("runs/x/2")


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("run", ["--model.norm", "group"], "needs a recipe first"),
        ("test", ["segmentation/base"], "there is no run of 'segmentation/base' to evaluate yet"),
        ("run", ["segmentation/base", "--ckpt_path", "https://x.org/a.ckpt"], "only local files are read"),
        ("run", ["segmentation/base", "--ckpt_path", "lst"], "allowed are 'last', 'best' or an existing file"),
        ("run", ["segmentation/base", "--ckpt_path", "last", "--init_from", "x"], "--init_from starts a new"),
    ],
)
def test_impossible_commands_are_told_in_one_sentence(verb: str, arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        parse_command(verb, arguments)


def test_continuing_from_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    other = _finished_run(tmp_path / "other")
    _finished_run(Path("runs/segmentation/base/1"))
    with pytest.raises(CommandError, match="use --init_from to start a new run from its weights"):
        parse_command("run", ["segmentation/base", "--ckpt_path", str(other / "checkpoints/best.ckpt")])


def test_an_occupied_directory_is_refused() -> None:
    _finished_run(Path("here"))
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        parse_command("run", ["segmentation/base", "--out", "here"])


@pytest.mark.parametrize("name", [["--model.norm", "group"], ["--model.norm=group"]])
def test_options_may_follow_a_norms_name(name: list[str]) -> None:
    command = parse_command("run", ["segmentation/base", *name, "--model.norm.num_groups", "4"])
    assert command is not None
    joined = " ".join(command.overrides)
    assert '{"name": "group"}' in joined
    assert joined.endswith("--model.norm.num_groups 4")
