"""Histograms with edges that stay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ics_apps.probes.activations.histogram import Histograms, edges

KEY = ("act", "", 0)


def count(histograms: Histograms, values: list[float], key=KEY):
    row = np.array(values, np.float32)
    finite = row[np.isfinite(row)].astype(np.float64)
    ordered = np.sort(np.where(np.isfinite(row), row, np.nan))[None]
    median, std = (np.median(finite), finite.std()) if len(finite) else (np.nan, np.nan)
    counts, center, scale = histograms.count([key], ordered, [len(finite)], [median], [std])
    return counts[0], float(center[0]), float(scale[0])


def test_edges_run_from_minus_to_plus_a_thousand_scales_and_are_narrowest_at_the_centre() -> None:
    found = edges([3.0], [2.0])
    assert found.shape == (1, 65)
    assert found[0, [0, 32, 64]] == pytest.approx([3 - 2000, 3, 3 + 2000])
    assert found[0] + found[0, ::-1] == pytest.approx(6.0)
    assert np.diff(found[0]).argmin() in (31, 32)


def test_a_value_on_an_edge_counts_as_above_it() -> None:
    counts, center, _ = count(Histograms(), [-1.0, 0.0, 0.0, 0.0, 1.0])
    assert center == 0.0
    assert counts[32] == 0
    assert counts[33] == 3


def test_values_beyond_a_thousand_scales_are_counted_at_the_ends() -> None:
    histograms = Histograms()
    count(histograms, [-1.0, 1.0])
    counts, _, _ = count(histograms, [-1e30, -1001.0, 0.0, 1001.0])
    assert (counts[0], counts[33], counts[65]) == (2, 1, 1)


def test_the_first_sample_sets_the_edges_for_good_and_each_key_has_its_own() -> None:
    histograms = Histograms()
    first = count(histograms, [1.0, 3.0])
    moved = count(histograms, [101.0, 103.0])
    other = count(histograms, [101.0, 103.0], ("act", "fake", 0))
    assert first[1:] == moved[1:] == (2.0, 1.0)
    assert other[1:] == (102.0, 1.0)
    assert first[0].argmax() < moved[0].argmax()


@pytest.mark.parametrize(("value", "scale"), [(0.0, 1.0), (-5.0, 5.0)])
def test_a_constant_first_sample_gives_bins_as_wide_as_its_value(value: float, scale: float) -> None:
    counts, center, found = count(Histograms(), [value] * 7)
    assert (center, found, counts[33]) == (value, scale, 7)


def test_a_sample_with_nothing_finite_is_empty_and_sets_no_edges() -> None:
    histograms = Histograms()
    counts, center, scale = count(histograms, [math.nan, math.inf])
    assert counts.sum() == 0
    assert math.isnan(center)
    assert math.isnan(scale)
    assert count(histograms, [1.0, 3.0])[1:] == (2.0, 1.0)
    assert count(histograms, [math.nan])[1:] == (2.0, 1.0)


def test_the_centre_and_scale_of_a_float32_table_give_the_same_edges() -> None:
    _, center, scale = count(Histograms(), [0.1, 0.2, 0.7])
    assert (center, scale) == (float(np.float32(center)), float(np.float32(scale)))


def test_more_values_than_a_counter_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="a row has 65536 values; give at most 65535"):
        Histograms().count([KEY], np.zeros((1, 65536), np.float32), [65536], [0.0], [0.0])
    assert Histograms().count([KEY], np.zeros((1, 65535), np.float32), [65535], [0.0], [0.0])[0].sum() == 65535


def test_no_rows_give_an_empty_table() -> None:
    counts, center, scale = Histograms().count([], np.empty((0, 4), np.float32), [], [], [])
    assert (counts.shape, center.shape, scale.shape) == ((0, 66), (0,), (0,))


def test_the_edges_survive_a_weights_only_file(tmp_path) -> None:
    histograms, restored = Histograms(), Histograms()
    count(histograms, [1.0, 3.0], ("a", "fake", 2))
    torch.save(histograms.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert count(restored, [7.0, 8.0], ("a", "fake", 2))[1:] == (2.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(st.floats(width=32), min_size=1, max_size=20),
    second=st.lists(st.floats(width=32), min_size=1, max_size=20),
)
def test_counts_are_those_of_numpys_histogram_and_sum_to_the_finite_values(
    first: list[float], second: list[float]
) -> None:
    histograms = Histograms()
    with np.errstate(over="ignore"):
        first = [value for value in first if not abs(value) > 1e18]
        count(histograms, first or [0.0])
        counts, center, scale = count(histograms, [value for value in second if not 1e18 < abs(value) < math.inf])
    finite = np.array([value for value in second if abs(value) <= 1e18])
    assert counts.sum() == len(finite)
    if len(finite):
        marks = np.concatenate([[-np.inf], edges(center, scale), [np.inf]])
        assert counts.tolist() == np.histogram(finite, marks)[0].tolist()
