"""Grids, ratios and summaries hold the monitor's numbers in forward order."""

from __future__ import annotations

import numpy as np
import pytest

from ics_apps.probes.activations import columns
from ics_apps.reports.layers import label, layer_grid, stream_ratios, summarise_layers, telling_places
from ics_apps.reports.run_files import read_run
from ics_apps.runs import layout


@pytest.fixture
def monitor_of(make_run, rows_of, save_monitor):
    def build(rows):
        run = make_run(steps=40)
        save_monitor(run / layout.MONITOR, [rows_of(**row) for row in rows])
        return read_run(run).monitor

    return build


def row(step, place, name, kind="norm", **given):
    return {"step": step, "place": place, "name": name, "kind": kind, "type_": "X", **given}


def test_grid_is_in_forward_order_with_gaps_as_nan(monitor_of):
    monitor = monitor_of([row(0, 1, "a", rms=1.0), row(0, 0, "z", rms=2.0), row(10, 1, "a", rms=3.0)])
    grid = layer_grid(monitor, "rms")
    assert grid.labels == ("z", "a")
    assert grid.steps.tolist() == [0, 10]
    np.testing.assert_array_equal(grid.values, [[2.0, np.nan], [1.0, 3.0]])


def test_layer_called_twice_a_step_has_a_row_for_each_call(monitor_of):
    monitor = monitor_of([row(0, 0, "d", call=0, rms=1.0), row(0, 0, "d", call=1, rms=2.0), row(0, 1, "g", rms=3.0)])
    grid = layer_grid(monitor, "rms")
    assert grid.labels == ("d", "d#1", "g")
    assert grid.values.tolist() == [[1.0], [2.0], [3.0]]


def test_layers_below_the_floor_are_left_out(monitor_of):
    monitor = monitor_of([row(0, 0, "a", rms=0.1), row(10, 0, "a", rms=0.2), row(0, 1, "b", rms=0.3)])
    assert layer_grid(monitor, "rms", 0.25).labels == ("b",)
    assert layer_grid(monitor, "rms", 1.0) is None


def test_ratio_divides_skip_by_up_of_the_same_level_and_step(monitor_of):
    rows = []
    for place, (level, skip, up) in enumerate([("decoder.1", 4.0, 2.0), ("decoder.0", 1.0, 4.0)]):
        rows += [row(s, 2 * place, f"{level}.concat.skip", "stream", rms=skip + s) for s in (0, 10)]
        rows += [row(s, 2 * place + 1, f"{level}.concat.up", "stream", rms=up) for s in (0, 10, 20)]
    ratios = stream_ratios(monitor_of(rows))
    assert [(r.name, r.steps.tolist(), r.values.tolist()) for r in ratios] == [
        ("decoder.1", [0, 10], [2.0, 7.0]),
        ("decoder.0", [0, 10], [0.25, 2.75]),
    ]


def test_ratio_leaves_out_silent_streams_and_other_layers(monitor_of):
    sizes = {"a.concat.skip": 1.0, "a.concat.up": 0.0, "a.concat.other": 1.0, "b.concat.skip": 1.0, "concat.skip": 3.0}
    rows = [row(0, place, name, rms=rms) for place, (name, rms) in enumerate([*sizes.items(), ("concat.up", 2.0)])]
    assert [(r.name, r.values.tolist()) for r in stream_ratios(monitor_of(rows))] == [("concat", [1.5])]


def test_summary_takes_the_median_the_peak_and_the_last_sample(monitor_of):
    drift = {0: float("nan"), 10: 0.5, 20: 2.0, 30: 1.0}
    monitor = monitor_of([row(s, 0, "a", drift_w1=d, rms=1.0 + s, dead_channels=s // 10) for s, d in drift.items()])
    (summary,) = summarise_layers(monitor)
    assert (summary.drift_median, summary.drift_peak, summary.drift_peak_step) == (1.0, 2.0, 20)
    assert (summary.rms_first, summary.rms_last, summary.dead, summary.nonfinite_step) == (1.0, 31.0, 3, -1)


@pytest.mark.parametrize("layer", ["net.act", "net.act+net.head.act", "a#b", "", "+x"])
@pytest.mark.parametrize("tag", ["", "fake", "0"])
@pytest.mark.parametrize("call", [0, 1, 12])
def test_layers_are_called_as_the_monitor_calls_them(layer, tag, call):
    assert label(layer, tag, call) == columns.label(layer, tag, call)


def test_tags_and_calls_of_a_layer_have_rows_of_their_own(monitor_of):
    keys = [("", 0), ("fake", 0), ("fake", 1)]
    monitor = monitor_of(
        [row(0, 0, "d", tag=tag, call=call, rms=1.0 + place) for place, (tag, call) in enumerate(keys)]
    )
    grid = layer_grid(monitor, "rms")
    assert grid.labels == ("d", "d#fake", "d#fake.1")
    assert grid.values.tolist() == [[1.0], [2.0], [3.0]]


def test_layer_that_appears_late_is_not_measured_before(monitor_of):
    monitor = monitor_of([row(0, 0, "a", rms=1.0), row(10, 0, "a", rms=2.0), row(10, 1, "late", rms=3.0)])
    grid = layer_grid(monitor, "rms")
    np.testing.assert_array_equal(grid.values, [[1.0, 2.0], [np.nan, 3.0]])


def test_telling_layers_are_both_ends_and_those_furthest_from_their_first_sample(monitor_of):
    peaks = {"first": 0.0, "b": 1.0, "c": 9.0, "d": 3.0, "e": 5.0, "f": 2.0, "g": 4.0, "last": 0.1}
    rows = [
        row(s, place, name, reference_w1=peak * s) for s in (0, 1) for place, (name, peak) in enumerate(peaks.items())
    ]
    monitor = monitor_of(rows)
    names = list(peaks)
    assert [names[place] for place in telling_places(monitor)] == ["first", "c", "d", "e", "g", "last"]
    assert [names[place] for place in telling_places(monitor, most=3)] == ["first", "c", "last"]


def test_telling_layers_of_an_older_file_are_judged_by_their_largest_drift(monitor_of):
    drift = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.1}
    monitor = monitor_of([row(1, place, name, drift_w1=w1) for place, (name, w1) in enumerate(drift.items())])
    assert telling_places(monitor, most=3) == (0, 1, 3)


def test_layers_without_a_percentile_are_not_telling(monitor_of):
    assert telling_places(monitor_of([row(0, 0, "a", q50=float("nan"))])) == ()
