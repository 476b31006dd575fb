"""A run directory is read in whatever state it was left."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ics_apps.reports.metric_files import read_curves
from ics_apps.reports.reading import describe_run
from ics_apps.reports.run_files import read_run
from ics_apps.reports.verdict import facts, notes, tiles
from ics_apps.runs import layout


def curves_of(tmp_path, text):
    (tmp_path / layout.METRICS_TABLE).write_bytes(text.encode())
    problems: list[str] = []
    return read_curves(tmp_path / layout.METRICS_TABLE, problems), problems


def test_empty_cells_are_not_values(tmp_path):
    (curves, step, epoch), problems = curves_of(tmp_path, "step,epoch,train/loss,val/dice\n1,0,0.5,\n2,1,,0.25\n")
    assert curves["train/loss"].steps.tolist() == [1]
    assert curves["val/dice"].values.tolist() == [0.25]
    assert (step, epoch, problems) == (2, 1, [])


def test_step_logged_again_after_a_resume_keeps_the_later_value(tmp_path):
    (curves, _, _), _ = curves_of(tmp_path, "step,epoch,val/dice\n10,0,0.1\n20,1,0.2\n20,1,0.9\n30,2,0.3\n")
    assert curves["val/dice"].steps.tolist() == [10, 20, 30]
    assert curves["val/dice"].values.tolist() == [0.1, 0.9, 0.3]


def test_logged_nan_is_kept(tmp_path):
    (curves, _, _), problems = curves_of(tmp_path, "step,epoch,train/loss\n1,0,nan\n")
    assert np.isnan(curves["train/loss"].values).tolist() == [True]
    assert problems == []


@pytest.mark.parametrize("tail", ["30,2,0.", "30", "30,2,0.37"])
def test_last_line_without_its_end_is_left_out_even_if_it_looks_whole(tmp_path, tail):
    (curves, step, _), problems = curves_of(tmp_path, "step,epoch,val/dice\n10,0,0.1\n" + tail)
    assert (curves["val/dice"].values.tolist(), step) == ([0.1], 10)
    assert problems == ["The last line of metrics.csv was cut off and is left out."]


def test_unreadable_cells_are_counted(tmp_path):
    (curves, _, _), problems = curves_of(tmp_path, "step,epoch,val/dice\n1,0,good\n2,0\nx,0,0.1\n4,0,0.4\n")
    assert curves["val/dice"].values.tolist() == [0.4]
    assert problems == ["3 lines or cells of metrics.csv could not be read and are left out."]


def test_table_without_steps_is_named(tmp_path):
    _, problems = curves_of(tmp_path, "a,b\n1,2\n")
    assert problems == ["metrics.csv has no column `step`; it is left out."]


@pytest.mark.parametrize("content", ["[1]", "{", "", '{"status": '])
def test_damaged_record_is_left_out_and_named(make_run, content):
    run = make_run()
    (run / layout.RECORD).write_text(content, encoding="utf-8")
    read = read_run(run)
    assert read.record == {}
    assert len(read.problems) == 1
    assert "run.json" in read.problems[0]


def test_summary_keeps_numbers_only(make_run):
    run = make_run()
    (run / layout.METRICS_SUMMARY).write_text('{"test/dice": 0.5, "a": "text", "b": true, "c": null}', encoding="utf-8")
    assert read_run(run).summary == {"test/dice": 0.5}


def test_monitor_files_are_joined_in_step_order_and_the_later_file_wins(make_run, rows_of, save_monitor):
    run = make_run(layers=[("norm", "norm", "BatchNorm2d")], steps=40)
    later = [rows_of(step, 0, "norm", "norm", "BatchNorm2d", rms=7.0) for step in (60, 20)]
    save_monitor(run / layout.MONITOR, later, "1.parquet")
    monitor = read_run(run).monitor
    assert monitor["step"].tolist() == [0, 20, 60]
    assert monitor["rms"].tolist() == [1.0, 7.0, 7.0]


def test_monitor_of_an_older_version_gets_the_missing_columns(make_run):
    import pandas as pd

    run = make_run(layers=[("norm", "norm", "BatchNorm2d")], steps=40)
    file = run / layout.MONITOR / "0.parquet"
    pd.read_parquet(file)[["step", "layer", "rms"]].to_parquet(file)
    monitor = read_run(run).monitor
    assert monitor["dead_channels"].tolist() == [-1, -1]
    assert monitor["drift_w1"].isna().all()


def test_unfinished_monitor_file_is_not_read(make_run):
    run = make_run()
    (run / layout.MONITOR / "1.parquet.part").write_bytes(b"half")
    assert read_run(run).problems == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_text_files_cut_anywhere_and_followed_by_junk_are_still_read(make_run, tmp_path, data):
    run = tmp_path / "cut"
    if not run.exists():
        make_run("cut", levels=1, cases=0, every=400)
        (run / layout.MONITOR / "0.parquet").unlink()
    name = data.draw(st.sampled_from([layout.RECORD, layout.METRICS_TABLE, layout.METRICS_SUMMARY, layout.CONFIG]))
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=6)))
    try:
        read = read_run(run)
        assert all(isinstance(text, str) for text in [*notes(read), *chain(*describe_run(read))])
        assert len(tiles(read)) == 2
        assert all(value for _, value in facts(read))
    finally:
        (run / name).write_bytes(whole)


def test_the_row_of_the_test_does_not_count_as_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,val/dice,test/dice\n9,0,0.5,\n19,1,0.6,\n20,2,,0.55\n")
    assert read_run(tmp_path).last_epoch == 1
