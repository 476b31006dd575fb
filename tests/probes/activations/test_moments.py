"""Statistics of samples against known answers and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis, skew
from torch import nn

from ics_apps.probes.activations.moments import GRID, NO_BOUNDS, describe, summarise
from ics_apps.probes.activations.sampling import locate, read


def test_a_constant_has_no_spread() -> None:
    figures = summarise(torch.full((2, 3, 4), -2.5))
    assert (figures["mean"], figures["std"], figures["rms"]) == (-2.5, 0.0, 2.5)
    assert figures["min"] == figures["q15"] == figures["q50"] == figures["q85"] == figures["max"] == -2.5
    assert (figures["count"], figures["zero_fraction"], figures["nonfinite_count"]) == (24, 0.0, 0)


def test_a_uniform_grid_has_the_moments_and_quantiles_of_the_uniform_law() -> None:
    n = 1001
    figures = summarise(torch.linspace(0, 1, n, dtype=torch.float64))
    assert figures["mean"] == pytest.approx(0.5, abs=1e-7)
    assert figures["std"] == pytest.approx(math.sqrt((n + 1) / (12 * (n - 1))), rel=1e-6)
    assert [figures[q] for q in ("q15", "q50", "q85")] == pytest.approx([0.15, 0.5, 0.85], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_sigma_300_neither_overflows_nor_loses_digits(dtype: torch.dtype) -> None:
    x = (300 * torch.randn(4096, generator=torch.Generator().manual_seed(0))).to(dtype)
    figures, exact = summarise(x, 4096), x.double()
    assert figures["mean"] == pytest.approx(float(exact.mean()), abs=1e-6 * 300)
    assert figures["std"] == pytest.approx(float(exact.std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
def test_a_mean_far_above_the_spread_costs_no_digits(ratio: float, dtype: torch.dtype) -> None:
    # Of the values as they are stored: beyond 250 sigma bfloat16 cannot hold the spread itself.
    x = (ratio + torch.randn(4096, generator=torch.Generator().manual_seed(1))).to(dtype)
    figures, exact = summarise(x, 4096), x.double()
    assert figures["mean"] == pytest.approx(float(exact.mean()), rel=1e-6)
    assert figures["std"] == pytest.approx(float(exact.std(correction=0)), rel=1e-6)
    assert figures["rms"] == pytest.approx(float(exact.square().mean().sqrt()), rel=1e-6)


def test_values_near_the_end_of_float32_do_not_overflow() -> None:
    figures = summarise(torch.tensor([-1e30, 1e30]))
    assert (figures["mean"], figures["std"]) == (0.0, pytest.approx(1e30, rel=1e-6))


def test_nan_and_inf_are_counted_and_left_out_of_everything_else() -> None:
    figures = summarise(torch.tensor([math.nan, 1.0, math.inf, 3.0, -math.inf, 0.0]))
    assert figures["nonfinite_count"] == 3
    assert (figures["mean"], figures["min"], figures["max"]) == (pytest.approx(4 / 3), 0.0, 3.0)
    assert figures["zero_fraction"] == pytest.approx(1 / 3)


def test_a_tensor_without_a_finite_value_gives_nan_and_its_count() -> None:
    figures = summarise(torch.full((7,), math.nan))
    assert figures["nonfinite_count"] == 7
    assert all(math.isnan(figures[name]) for name in ("mean", "std", "rms", "min", "max", "q50", "zero_fraction"))


def test_saturated_values_are_counted_on_the_output() -> None:
    y = torch.tensor([0.0, 0.01, 0.5, 0.6, 0.99])
    assert summarise(y, activation=nn.Sigmoid())["saturated_fraction"] == pytest.approx(3 / 5)
    assert math.isnan(summarise(y)["saturated_fraction"])
    assert math.isnan(summarise(y, activation=nn.GELU())["saturated_fraction"])


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    size=st.integers(2, 200),
    turn=st.integers(0, 99),
    mean=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_statistics_of_the_sample_equal_numpys_on_the_same_elements(
    shape: list[int], size: int, turn: int, mean: float, seed: int
) -> None:
    x = mean + torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()
    figures = summarise(x, size, turn)
    values = read(x, locate(x, size, turn)).numpy().astype(np.float64)
    scale = np.abs(values).max() + 1e-30
    assert figures["count"] == len(values)
    assert figures["mean"] == pytest.approx(values.mean(), abs=1e-6 * scale)
    assert figures["std"] == pytest.approx(values.std(), abs=1e-6 * scale)
    assert figures["rms"] == pytest.approx(math.sqrt((values**2).mean()), abs=1e-6 * scale)
    assert (figures["min"], figures["max"]) == (values.min(), values.max())
    assert figures["zero_fraction"] == pytest.approx((values == 0).mean(), abs=1e-12)
    expected = np.quantile(values, [0.15, 0.5, 0.85])
    assert [figures[q] for q in ("q15", "q50", "q85")] == pytest.approx(expected, abs=1e-6 * scale)


def test_rows_of_different_length_are_described_together() -> None:
    rows = np.full((3, 100), np.nan, np.float32)
    rows[0, :4] = [4.0, 2.0, 1.0, 3.0]
    rows[1] = np.arange(100.0)
    found = describe(rows, np.array([NO_BOUNDS] * 3))
    assert found.figures["mean"] == pytest.approx([2.5, 49.5, math.nan], rel=1e-7, nan_ok=True)
    assert found.kept.tolist() == [4, 100, 0]
    assert found.ordered[0, :4].tolist() == [1.0, 2.0, 3.0, 4.0]
    levels = (np.arange(GRID) + 0.5) / GRID
    assert found.grid[1] == pytest.approx(np.quantile(np.arange(100.0), levels), abs=1e-9)
    assert np.isnan(found.grid[2]).all()


@pytest.mark.parametrize("ratio", [0.0, 1e2, 1e4])
def test_skewness_and_kurtosis_are_those_of_scipy(ratio: float) -> None:
    x = ratio + torch.randn(2000, generator=torch.Generator().manual_seed(2)).exp()
    figures = summarise(x, 2000)
    assert figures["skewness"] == pytest.approx(skew(x.double().numpy()), rel=1e-9)
    assert figures["kurtosis"] == pytest.approx(kurtosis(x.double().numpy(), fisher=False), rel=1e-9)


def test_a_constant_is_symmetric_and_has_no_tails() -> None:
    figures = summarise(torch.full((9,), 0.1))
    assert figures["skewness"] == 0.0
    assert math.isnan(figures["kurtosis"])
