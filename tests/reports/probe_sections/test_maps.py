"""Maps keep the telling values, low or high, where there are more layers or steps than a page holds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ics_apps.reports.cells import MAX_COLUMNS, MAX_ROWS
from ics_apps.reports.layers import Grid
from ics_apps.reports.probe_sections.maps import ProbeMap, probe_map

COSINE = ProbeMap("cosine", "Direction", "cosine (no unit)", "Cosine.", scale="linear", lowest=True)
SHIFT = ProbeMap("shift", "Shift", "share", "Shift.")


def grid(values):
    values = np.asarray(values, dtype=float)
    names = tuple(f"layer{i}" for i in range(len(values)))
    return Grid(names, ("",) * len(values), np.arange(values.shape[1]) * 10, values)


def texts(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_a_linear_map_reaches_below_zero():
    ticks = texts(probe_map(grid([[-0.8, 0.9], [1.0, 0.2]]), COSINE))
    assert {"Direction", "cosine (no unit)", "-0.5", "0", "1"} <= set(ticks)


def test_of_many_layers_those_with_the_lowest_cosine_are_kept():
    values = np.ones((MAX_ROWS + 5, 1))
    values[-1] = -0.5
    drawing = probe_map(grid(values), COSINE)
    assert f"layer{MAX_ROWS + 4}" in texts(drawing)
    assert f"The {MAX_ROWS} most telling layers of {MAX_ROWS + 5} are drawn." in drawing.caption


def test_of_many_steps_the_lowest_cosine_is_kept():
    values = np.ones((1, 3 * MAX_COLUMNS))
    values[0, 601] = -0.5
    drawing = probe_map(grid(values), COSINE)
    assert "Each column shows the most telling of up to 3 measurements." in drawing.caption
    assert "0" in texts(drawing)  # the colour scale reaches down to it


def test_a_reading_opens_the_caption():
    assert probe_map(grid([[0.5]]), SHIFT, "At step 0 it shifted.").caption.startswith("At step 0 it shifted. Shift.")


@pytest.mark.parametrize("values", [[[0.0]], [[np.nan, 0.0]], [[-1.0]]])
def test_a_log_map_without_a_value_above_zero_is_not_drawn(values):
    assert probe_map(grid(values), SHIFT) is None


@pytest.mark.parametrize("values", [[[0.0]], [[1.0, 1.0]], [[-1e100, 1e100]], [[1e-100, np.nan]]])
def test_any_grid_can_be_drawn_on_a_linear_scale(values):
    assert probe_map(grid(values), COSINE) is not None
