"""Charts name their axes, draw what is finite, and are logarithmic only where every value allows it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ics_apps.reports.probe_sections.charts import Chart, band, draw_chart, line, spread, value_axis

WHAT = Chart("chart", "A title", "length (mm)")


def draw(values, log, steps=None):
    values = np.asarray(values, dtype=float)
    steps = np.arange(len(values)) * 10 if steps is None else np.asarray(steps)

    def paint(axes):
        band(axes, steps, (values, values), "band")
        line(axes, steps, values, "line")
        value_axis(axes, (values,), log=log)

    drawing = draw_chart(WHAT, paint, "Caption.", steps)
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_a_chart_has_title_axes_and_legend():
    assert {"A title", "length (mm)", "step", "band", "line"} <= set(draw([1.0, 2.0], log=False))


@pytest.mark.parametrize("log", [True, False, None])
@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0], [np.nan], [np.inf, 1.0], [-1.0, 5.0], [0.0, 0.0], [1e-100, 1e100], [8.0, 8.1], [1e100, -1e100]],
)
def test_any_values_can_be_drawn_on_any_axis(values, log):
    assert "A title" in draw(values, log)


def test_values_that_span_decades_choose_a_log_axis_by_themselves():
    assert {"0.1", "10"} <= set(draw([0.05, 50.0], log=None))
    assert "0.1" not in draw([1.0, 5.0], log=None)


def test_a_single_measurement_has_its_step_as_the_only_tick():
    assert [text for text in draw([3.0], log=False, steps=[700]) if text in ("700", "699.98")] == ["700"]


def test_spread_over_layers_leaves_out_what_was_not_measured():
    values = np.array([[1.0, np.nan], [2.0, np.inf], [3.0, np.nan]])
    found = spread(values)
    assert found[1].tolist()[0] == 2.0
    assert np.isnan(found[:, 1]).all()
