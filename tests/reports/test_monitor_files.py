"""The monitor's files are read whole, in forward order, whatever version wrote them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ics_apps.reports.monitor_files import read_histograms, read_monitor
from ics_apps.runs import layout


def test_columns_that_an_older_file_lacks_are_not_measured(make_run):
    monitor = read_monitor(make_run() / layout.MONITOR, [])
    assert monitor["reference_w1"].isna().all()
    assert set(monitor["tag"]) == {""}


def test_older_and_newer_parts_of_one_run_join(make_watched, rows_of, save_monitor):
    run = make_watched(layers=[("a", "norm", "X")], steps=[0, 40])
    save_monitor(run / layout.MONITOR, [rows_of(80, 0, "a", "norm", "X")], "1.parquet")
    monitor = read_monitor(run / layout.MONITOR, [])
    assert monitor["step"].tolist() == [0, 40, 80]
    assert monitor["place"].tolist() == [0, 0, 0]
    assert np.isfinite(monitor["grad_rms"]).tolist() == [True, True, False]
    assert len(read_histograms(run / layout.MONITOR, ["a"])) == 2


def test_places_are_in_forward_order_whichever_layer_is_seen_first(make_run, rows_of, save_monitor):
    run = make_run()
    rows = [rows_of(0, 1, "b", "norm", "X"), rows_of(10, 0, "late", "norm", "X"), rows_of(10, 1, "b", "norm", "X")]
    save_monitor(run / layout.MONITOR, rows)
    monitor = read_monitor(run / layout.MONITOR, [])
    assert list(zip(monitor["step"], monitor["layer"], monitor["place"], strict=True)) == [
        (0, "b", 1),
        (10, "late", 0),
        (10, "b", 1),
    ]


def test_only_the_histograms_that_are_asked_for_are_read(make_watched):
    run = make_watched(steps=[0, 40])
    rows = read_histograms(run / layout.MONITOR, ["net.encoder.0.conv1"])
    assert set(rows["layer"]) == {"net.encoder.0.conv1"}
    assert [counts.sum() for counts in rows["histogram"]] == [256, 256]
    assert read_histograms(run / layout.MONITOR, ["nobody"]) is None


def test_alarms_beside_the_files_do_not_stop_pandas(make_watched):
    assert len(pd.read_parquet(make_watched() / layout.MONITOR)) == 34 * 10
