"""Charts and heat maps hold what they were given, as text where it is text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ics_apps.reports.curves import MAX_LINES, metric_charts, ratio_chart
from ics_apps.reports.heatmaps import heat_map
from ics_apps.reports.layers import Grid
from ics_apps.reports.metric_files import Series
from ics_apps.reports.svg import log_ticks


def series(name, values, steps=None):
    values = np.asarray(values, dtype=float)
    return Series(name, np.arange(len(values)) if steps is None else np.asarray(steps), values)


def curves(*names, values=(1.0, 2.0, 3.0)):
    return {name: series(name, values) for name in names}


def grid(values, labels=None, kinds=None):
    values = np.asarray(values, dtype=float)
    names = tuple(f"layer{i}" for i in range(len(values)))
    return Grid(labels or names, kinds or ("norm",) * len(values), np.arange(values.shape[1]) * 10, values)


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_losses_come_first_together_and_wide_and_the_rest_by_metric():
    charts = metric_charts(
        curves("lr", "val/dice", "val/dice/a", "train/loss", "val/loss", "train/loss_ce", "test/dice")
    )
    assert [chart.wide for chart in charts] == [True, False, False]
    labels = [" ".join(texts(chart.svg)) for chart in charts]
    assert all(name in labels[0] for name in ("train/loss", "val/loss", "train/loss_ce"))
    assert "val/dice/a" in labels[1]
    assert "test/dice" not in " ".join(labels)
    assert charts[2].caption == "Learning rate."


def test_too_many_lines_are_counted_in_the_caption():
    (chart,) = metric_charts(curves(*(f"val/dice/class_{i}" for i in range(12))))
    assert f"{MAX_LINES} of 12 lines are drawn" in chart.caption


@pytest.mark.parametrize(
    "values", [[np.nan, np.nan], [1.0], [np.inf, 1.0, -np.inf], [0.0, 0.0], [1e-30, 1e30], [-1.0, 5.0]]
)
def test_any_values_can_be_drawn(values):
    charts = metric_charts({name: series(name, values) for name in ("train/loss", "val/dice", "lr")})
    assert len(charts) == 3


def test_long_series_is_thinned_but_keeps_its_peak():
    values = np.zeros(50_000)
    values[31_234] = 7.0
    (chart,) = metric_charts({"val/dice": series("val/dice", values)})
    assert len(chart.svg) < 100_000
    assert "7.00" in texts(chart.svg)


@pytest.mark.parametrize("values", [[1.0], [0.5, 0.5], [1e-6, 1e6], [2.0, 3.0, 2.5]])
def test_ratio_axis_always_holds_one(values):
    labels = texts(ratio_chart([series("decoder.0", values)]).svg)
    assert "1" in labels


def test_heat_map_keeps_layer_names_as_text_from_top_to_bottom():
    drawing = heat_map(grid([[0.1, 0.2], [0.3, 0.4]], ("first", "$x$ & <b>")), "drift", "log", "nats", "Drift.")
    labels = texts(drawing.svg)
    assert labels.index("first") < labels.index("$x$ &amp; &lt;b&gt;")
    assert "nats" in labels
    assert drawing.svg.count("data:image/png;base64,") == 2  # the cells and the colour bar


def test_long_names_are_cut_in_the_middle_to_fit():
    drawing = heat_map(grid([[0.1, 0.2]], ("encoder." + "x" * 300 + ".norm",)), "drift", "log", "nats", "Drift.")
    longest = max(texts(drawing.svg), key=len)
    assert len(longest) == 38
    assert longest.startswith("encoder.")
    assert longest.endswith(".norm")


def test_log_heat_map_without_a_positive_value_is_not_drawn():
    assert heat_map(grid([[0.0, np.nan]]), "drift", "log", "nats", "Drift.") is None


@pytest.mark.parametrize("scale", ["log", "share", "small_share", "around_one"])
@pytest.mark.parametrize(
    "values", [[[1.0]], [[0.0, 1.0]], [[1e-30, 1.0]], [[0.5, np.nan, 0.5]], [[1.0, 1.0], [1.0, 1.0]]]
)
def test_any_grid_can_be_drawn_on_any_scale(scale, values):
    assert heat_map(grid(values), "x", scale, "unit", "Caption.") is not None


def test_merged_columns_keep_the_peak_and_say_so():
    values = np.full((1, 2000), 0.1)
    values[0, 1234] = 100.0
    drawing = heat_map(grid(values), "x", "log", "unit", "Caption.")
    assert "Each column shows the largest of up to 5 samples." in drawing.caption
    assert "100" in texts(drawing.svg)


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.09), (1e-6, 1e6), (0.9, 1.1), (3.0, 3.0), (1e-300, 1e300)])
def test_log_ticks_are_few_and_inside_or_at_the_ends(low, high):
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low * 0.95 <= tick <= high * 1.05 for tick in ticks)
