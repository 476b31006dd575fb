"""Bands and histograms show where the values were, in the layer's own units."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ics_apps.probes.activations import histogram
from ics_apps.reports import ridges
from ics_apps.reports.bands import band_chart
from ics_apps.reports.layers import telling_places
from ics_apps.reports.ridges import CELLS, read_ridges, ridge_chart
from ics_apps.reports.run_files import read_run
from ics_apps.runs import layout


def titles(svg):
    return [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if text.startswith("net.")]


def ridges_of(run, places=(0,)):
    return read_ridges(run / layout.MONITOR, read_run(run).monitor, places)


def test_edges_are_those_of_the_monitor():
    np.testing.assert_allclose(ridges._EDGES, histogram.edges([0.0], [1.0])[0], rtol=1e-12)


def test_bands_and_histograms_show_the_same_few_layers(make_watched):
    run = read_run(make_watched())
    places = telling_places(run.monitor)
    bands = titles(band_chart(run.monitor, places).svg)
    assert bands == titles(ridge_chart(run.path / layout.MONITOR, run.monitor, places).svg)
    assert len(bands) == 6
    assert (bands[0], bands[-1]) == ("net.encoder.0.conv1", "net.decoder.1.act2")


def test_axis_of_a_histogram_is_where_the_mass_is(make_watched):
    (ridge,) = ridges_of(make_watched())
    assert ridge.label == "net.encoder.0.conv1"
    assert -4.5 < ridge.edges[0] < -2
    assert 2 < ridge.edges[-1] < 4.5
    assert ridge.shares.shape == (CELLS, 10)
    assert (ridge.shares.sum(axis=0) > 0.95).all()


def test_mass_lies_in_the_cells_of_its_values(make_watched):
    counts = np.zeros(66, int)
    counts[33], counts[40] = 30, 10  # bins from the centre up to 0.24, and from 1.75 to 2.14 scales above it

    def change(row):
        return {**row, "hist_center": 5.0, "hist_scale": 2.0, "histogram": counts, "min": 5.0, "max": 1e6}

    (ridge,) = ridges_of(make_watched(change=change))
    edge = 5 + 2 * np.sinh(np.linspace(-np.arcsinh(1000), np.arcsinh(1000), 65))
    low = ridge.edges[:-1] < edge[33]
    assert ridge.edges[0] >= 5.0
    assert ridge.edges[-1] <= edge[40] + 1e-9
    assert ridge.shares[low].sum(axis=0) == pytest.approx(0.75 - ridges._TAIL, abs=1e-3)


def test_outer_bins_end_at_the_largest_value(make_watched):
    layers = [("net.act", "activation", "Tanh")]
    (ridge,) = ridges_of(make_watched(layers=layers, alarms=None))
    assert ridge.edges[0] >= -1
    assert ridge.edges[-1] <= 1


def test_long_run_is_merged_into_fewer_columns(make_watched):
    layers = [("net.conv", "conv", "Conv2d")]
    (ridge,) = ridges_of(make_watched(layers=layers, steps=range(700)))
    assert ridge.shares.shape == (CELLS, 200)


@pytest.mark.parametrize(
    "broken",
    [
        {"hist_scale": 0.0},
        {"hist_scale": float("nan")},
        {"hist_center": float("inf")},
        {"histogram": np.zeros(66, int)},
        {"histogram": np.eye(66, dtype=int)[0]},
    ],
)
def test_histogram_without_mass_or_scale_is_left_out(make_watched, broken):
    run = make_watched(change=lambda row: {**row, **broken})
    assert ridges_of(run) == []


def test_older_file_has_bands_but_no_histograms(make_run):
    run = read_run(make_run())
    assert band_chart(run.monitor, (0, 1)) is not None
    assert ridge_chart(run.path / layout.MONITOR, run.monitor, (0, 1)) is None


def test_one_sample_can_be_drawn(make_watched):
    run = read_run(make_watched(steps=[0]))
    places = telling_places(run.monitor)
    assert band_chart(run.monitor, places) is not None
    assert ridge_chart(run.path / layout.MONITOR, run.monitor, places) is not None


def test_band_that_explodes_late_leaves_the_axis_and_the_caption_says_so(make_watched):
    def change(row):
        return {**row, "q85": 1e12} if row["step"] == 390 else row

    run = read_run(make_watched(steps=range(0, 400, 10), change=change))
    drawing = band_chart(run.monitor, (0,))
    assert "leaves the axis" in drawing.caption
    assert not any("e12" in text or "e11" in text for text in re.findall(r">([^<]+)</text>", drawing.svg))


def test_percentiles_that_are_not_finite_leave_a_gap(make_watched):
    def change(row):
        return {**row, "q85": float("inf"), "q50": float("nan")} if row["step"] == 40 else row

    run = read_run(make_watched(change=change))
    assert "leaves the axis" not in band_chart(run.monitor, (0,)).caption
