"""A run stopped in any way and continued with `--ckpt_path last` ends as a run that was not stopped."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from killed_runs import TINY, finish, start, stop_when

from ics_apps.runs.checkpoints import read_checkpoint

EPOCHS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(["run", str(TINY), "--out", str(folder / "run")], folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def assert_same_end(run: Path, whole: Path) -> None:
    mine, theirs = read_checkpoint(run / "checkpoints/last.ckpt"), read_checkpoint(whole / "checkpoints/last.ckpt")
    assert mine["global_step"] == theirs["global_step"]
    assert mine["lr_schedulers"] == theirs["lr_schedulers"]
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(mine["state_dict"][name], tensor), f"{name} differs from the run that was not stopped"
    pd.testing.assert_frame_equal(pd.read_csv(run / "metrics.csv"), pd.read_csv(whole / "metrics.csv"))
    assert (run / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    assert json.loads((run / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert not list(run.rglob("*.part"))


def epoch_has_rows(run: Path, epoch: int) -> Callable[[], bool]:
    def condition() -> bool:
        path = run / "metrics.csv"
        return path.is_file() and f",{epoch}," in path.read_text()

    return condition


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path, whole: Path, signal_number: int, code: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["run", str(TINY), "--out", str(run)]
    process = start(command, log)
    assert stop_when(process, epoch_has_rows(run, 2), signal_number) == code, log.read_text()
    assert not (run / "metrics.json").exists()
    assert finish([*command, "--ckpt_path", "last"], log) == 0, log.read_text()
    assert_same_end(run, whole)
    assert json.loads((run / "run.json").read_text())["resumed"], "the record does not tell of the resume"


def test_ctrl_c_and_sigterm_say_how_to_continue(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(["run", str(TINY), "--out", str(run)], log)
    stop_when(process, epoch_has_rows(run, 1), signal.SIGINT)
    assert f"continue with: ics-apps run {TINY} --out {run} --ckpt_path last" in log.read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


def test_a_run_stopped_before_its_first_epoch_ended_starts_again_and_says_so(tmp_path: Path, whole: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["run", str(TINY), "--out", str(run)]
    stop_when(start(command, log), epoch_has_rows(run, 0), signal.SIGKILL)
    for checkpoint in (run / "checkpoints").glob("*.ckpt"):
        checkpoint.unlink()
    assert finish([*command, "--ckpt_path", "last"], log) == 0, log.read_text()
    assert "no finished epoch" in log.read_text()
    assert_same_end(run, whole)


def test_a_finished_run_continued_again_changes_nothing(tmp_path: Path, whole: Path) -> None:
    before = (whole / "metrics.csv").read_text()
    command = ["run", str(TINY), "--out", str(whole), "--ckpt_path", "last"]
    assert finish(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert (whole / "metrics.csv").read_text() == before
    assert_same_end(whole, whole)


def test_a_corrupt_last_is_named_and_the_epoch_before_continues_the_run(tmp_path: Path, whole: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["run", str(TINY), "--out", str(run)]
    stop_when(start(command, log), epoch_has_rows(run, 3), signal.SIGKILL)
    (run / "checkpoints/last.ckpt").write_bytes(b"")
    assert finish([*command, "--ckpt_path", "last"], log) == 0, log.read_text()
    assert "skipped a checkpoint" in log.read_text()
    assert_same_end(run, whole)


def test_a_fresh_start_in_a_directory_with_a_run_is_refused(tmp_path: Path, whole: Path) -> None:
    log = tmp_path / "log"
    before = sorted(path.stat().st_mtime_ns for path in whole.rglob("*"))
    assert finish(["run", str(TINY), "--out", str(whole)], log) == 2
    assert "already holds a run: continue it with --ckpt_path last" in log.read_text()
    assert sorted(path.stat().st_mtime_ns for path in whole.rglob("*")) == before


def test_a_resume_that_would_change_the_model_is_refused(tmp_path: Path, whole: Path) -> None:
    log = tmp_path / "log"
    command = ["run", str(TINY), "--out", str(whole), "--ckpt_path", "last", "--model.optimizer.lr", "0.5"]
    assert finish(command, log) == 2
    assert "model.init_args.optimizer.init_args.lr was 0.001 when this run began and is 0.5 now" in log.read_text()
    assert "--init_from" in log.read_text()


def test_another_setting_on_resume_is_kept_beside_the_first_configuration(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["fit", str(TINY), "--out", str(run), "--model.scheduler", "null"]
    assert finish([*command, "--trainer.max_epochs", "1"], log) == 0, log.read_text()
    assert finish([*command, "--trainer.max_epochs", "2", "--ckpt_path", "last"], log) == 0, log.read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 1
    assert yaml.safe_load((run / "config.resume-1.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert (
        read_checkpoint(run / "checkpoints/last.ckpt")["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
        == 2
    )


def test_a_longer_run_in_two_calls_equals_one_call(tmp_path: Path) -> None:
    log = tmp_path / "log"
    common = [str(TINY), "--model.scheduler", "null", "--out"]
    assert finish(["fit", *common, str(tmp_path / "one"), "--trainer.max_epochs", "3"], log) == 0
    two = ["fit", *common, str(tmp_path / "two")]
    assert finish([*two, "--trainer.max_epochs", "1"], log) == 0
    assert finish([*two, "--trainer.max_epochs", "3", "--ckpt_path", "last"], log) == 0, log.read_text()
    one = read_checkpoint(tmp_path / "one/checkpoints/last.ckpt")["state_dict"]
    other = read_checkpoint(tmp_path / "two/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_schedule_that_moves_once_an_epoch_is_not_late_after_a_resume(tmp_path: Path) -> None:
    log = tmp_path / "log"
    scheduler = ["--model.scheduler", "torch.optim.lr_scheduler.StepLR", "--model.scheduler.step_size", "1"]
    command = ["fit", str(TINY), *scheduler, "--trainer.max_epochs", "4", "--out"]
    assert finish([*command, str(tmp_path / "one")], log) == 0, log.read_text()
    stop_when(start([*command, str(tmp_path / "two")], log), epoch_has_rows(tmp_path / "two", 2), signal.SIGKILL)
    assert finish([*command, str(tmp_path / "two"), "--ckpt_path", "last"], log) == 0, log.read_text()
    one, two = (read_checkpoint(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert one["lr_schedulers"] == two["lr_schedulers"]
    assert one["optimizer_states"][0]["param_groups"] == two["optimizer_states"][0]["param_groups"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_no_finished_epoch(tmp_path: Path, whole: Path) -> None:
    rng = random.Random(2012)  # noqa: S311 - moments of a test, not secrets
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["run", str(TINY), "--out", str(run)]
    kills = 0
    finished_before = 0
    while kills < 20:
        process = start([*command, "--ckpt_path", "last"] if kills else command, log)
        process.join(rng.uniform(0.3, 2.5))
        if not process.is_alive():  # it came to its end between two kills: begin another run
            assert process.exitcode == 0, log.read_text()
            assert_same_end(run, whole)
            run, finished_before = tmp_path / f"run{kills}", 0
            command = ["run", str(TINY), "--out", str(run)]
            kills += 1
            process = start(command, log)
            process.join(rng.uniform(0.3, 2.5))
        process.kill()
        process.join()
        kills += 1
        last = run / "checkpoints/last.ckpt"
        if last.is_file():
            finished = read_checkpoint(last)["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
            assert finished >= finished_before, "a finished epoch was lost"
            finished_before = finished
            rows = pd.read_csv(run / "metrics.csv", on_bad_lines="skip")
            epochs_on_disk = set(rows.loc[rows["val/dice"].notna(), "epoch"])
            assert set(range(finished)) <= epochs_on_disk, "metrics of a finished epoch are not on disk"
    assert finish([*command, "--ckpt_path", "last"], log) == 0, log.read_text()
    assert_same_end(run, whole)
