"""Eigenvalues against known spectra, and a bound that holds whatever the spectrum is."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ics_apps.probes.lanczos import (
    TOP,
    Eigenvalue,
    Extremes,
    extreme_eigenvalues,
    extremes_of,
    lanczos,
    random_starts,
)
from ics_apps.probes.preserve import ProbeError


def matrix_with(spectrum: list[float], seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))[0]
    matrix = torch.from_numpy((basis * spectrum) @ basis.T)
    return (matrix + matrix.T) / 2


def times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: matrix @ v


def start_for(matrix: Tensor, seed: int = 0) -> Tensor:
    return next(random_starts(len(matrix), matrix, seed))


def reference_rounding(eigenvalues: np.ndarray) -> float:
    """What the reference itself may be wrong by."""
    return float(len(eigenvalues) * np.finfo(float).eps * np.abs(eigenvalues).max())


# Clustered, degenerate, of both signs, rank-deficient, over several orders of magnitude.
plain = st.floats(-10, 10).map(lambda x: round(x, 3))
clustered = st.builds(
    lambda x, gap: x + gap, st.sampled_from([-3.0, 0.0, 1.0]), st.sampled_from([0, 1e-12, 1e-8, 1e-4])
)
wide = st.builds(lambda sign, power: sign * 10.0**power, st.sampled_from([-1, 1]), st.integers(-8, 4))
spectra = st.lists(st.one_of(plain, clustered, wide), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(spectra, st.integers(0, 2**31), st.integers(1, 35))
def test_an_eigenvalue_lies_within_the_bound_of_every_ritz_value(
    spectrum: list[float], seed: int, products: int
) -> None:
    matrix = matrix_with(spectrum, seed)
    true = np.linalg.eigvalsh(matrix.numpy())
    found = lanczos(times(matrix), start_for(matrix, seed), products)
    distance = np.abs(true - found.values[:, None]).min(axis=1)
    assert (distance <= found.bounds + reference_rounding(true)).all()
    assert found.products <= min(products, len(spectrum))


@settings(max_examples=200, deadline=None)
@given(spectra, st.integers(0, 2**31), st.integers(1, 35))
def test_no_ritz_value_lies_outside_the_spectrum(spectrum: list[float], seed: int, products: int) -> None:
    matrix = matrix_with(spectrum, seed)
    true = np.linalg.eigvalsh(matrix.numpy())
    found = lanczos(times(matrix), start_for(matrix, seed), products)
    slack = found.floor + reference_rounding(true)
    assert found.values[0] >= true[0] - slack
    assert found.values[-1] <= true[-1] + slack


@settings(max_examples=200, deadline=None)
@given(spectra, st.integers(0, 2**31), st.integers(1, 35))
def test_bounds_hold_in_float32_against_the_float64_spectrum(spectrum: list[float], seed: int, products: int) -> None:
    matrix = matrix_with(spectrum, seed).float()
    true = np.linalg.eigvalsh(matrix.double().numpy())
    found = lanczos(times(matrix), start_for(matrix, seed), products)
    assert (np.abs(true - found.values[:, None]).min(axis=1) <= found.bounds).all()


@pytest.mark.parametrize("size", [6, 30])
def test_all_steps_give_the_eigenvalues_of_a_quadratic(size: int) -> None:
    spectrum = np.random.default_rng(size).normal(size=size)
    matrix = matrix_with(spectrum.tolist())
    found = lanczos(times(matrix), start_for(matrix), max_products=size)
    assert found.values == pytest.approx(np.sort(spectrum), abs=1e-8)


def test_the_ends_of_a_quadratic_converge_long_before_the_rest() -> None:
    spectrum = [-20.0, *np.linspace(-1, 1, 300), 10.0, 12.0, 15.0, 20.0, 40.0]
    matrix = matrix_with(spectrum)
    found = extreme_eigenvalues(times(matrix), start_for(matrix), 60, tolerance=1e-8)
    assert found.products < 40
    assert found.converged
    assert [value.value for value in found.largest] == pytest.approx([40, 20, 15, 12, 10], abs=1e-8)
    assert found.smallest.value == pytest.approx(-20, abs=1e-8)
    assert found.ratio == pytest.approx(4)


@pytest.mark.parametrize("seed", range(20))
def test_a_smallest_eigenvalue_that_has_not_converged_is_marked(seed: int) -> None:
    # A crowd at the lower end, one outlier at the other.
    matrix = matrix_with([*(np.linspace(0.1, 1, 400) ** 2), 50.0], seed)
    found = extreme_eigenvalues(times(matrix), start_for(matrix, seed), max_products=12)
    assert found.largest[0].converged
    assert found.largest[0].value == pytest.approx(50, rel=1e-3)
    assert found.smallest.value > 0.01 * (1 + 1e-3)
    assert not found.smallest.converged
    assert not found.converged


@pytest.mark.parametrize("seed", range(20))
def test_what_is_marked_converged_is_within_the_tolerance(seed: int) -> None:
    spectrum = np.sort(np.random.default_rng(seed).normal(size=60)) * 3
    matrix = matrix_with(spectrum.tolist(), seed)
    for products in range(5, 60, 5):
        found = extreme_eigenvalues(times(matrix), start_for(matrix, seed), products, tolerance=1e-4)
        for value in (*found.largest, found.smallest):
            error = np.abs(spectrum - value.value).min()
            assert error <= 1e-4 * abs(value.value) or not value.converged


def test_multiples_of_the_identity_take_one_product() -> None:
    found = lanczos(lambda v: 3 * v, torch.ones(50, dtype=torch.float64), max_products=20)
    assert found.products == 1
    assert found.values == pytest.approx([3])
    assert found.bounds[0] <= 3 * 4 * np.finfo(float).eps


def test_zero_is_the_only_eigenvalue_of_a_zero_matrix() -> None:
    found = extreme_eigenvalues(torch.zeros_like, torch.ones(50), max_products=20)
    assert found.products == 1
    assert found.smallest == found.largest[0] == Eigenvalue(0.0, 0.0, converged=True)
    assert math.isnan(found.ratio)


def test_an_exhausted_space_ends_the_search_with_every_distinct_eigenvalue() -> None:
    matrix = matrix_with([2.0] * 20 + [-1.0] * 10 + [0.0] * 30)
    found = lanczos(times(matrix), start_for(matrix), max_products=40)
    assert found.products == 3
    assert found.values == pytest.approx([-1, 0, 2], abs=1e-12)
    assert extremes_of(found).smallest.converged


def test_fewer_weights_than_products_take_as_many_products_as_weights() -> None:
    matrix = matrix_with([1.0, 2.0])
    found = extreme_eigenvalues(times(matrix), start_for(matrix), max_products=40)
    assert found.products == 2
    assert [value.value for value in found.largest] == pytest.approx([2, 1])
    assert math.isnan(found.ratio)


def test_the_weights_are_a_gauss_quadrature() -> None:
    matrix = matrix_with(np.random.default_rng(3).normal(size=40).tolist())
    start = start_for(matrix)
    found = lanczos(times(matrix), start, max_products=5)
    v = start / start.norm()
    for degree in range(10):
        assert found.weights @ found.values**degree == pytest.approx(
            float(v @ torch.linalg.matrix_power(matrix, degree) @ v)
        )


def test_products_that_are_not_symmetric_widen_the_bounds() -> None:
    matrix, generator = matrix_with([1.0, 2.0, 3.0, 10.0]), torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    skew = noise - noise.T
    clean = lanczos(times(matrix), start_for(matrix), 4)
    noisy = lanczos(times(matrix + skew), start_for(matrix), 4)
    assert clean.bounds.max() < 1e-12
    assert 1e-4 < noisy.bounds.max() < 1e-2


@pytest.mark.parametrize("last", [(0.0, 0.1, True), (-1.0, 1e-6, True), (1.0, 0.5, False)])
def test_the_ratio_is_unknown_unless_the_fifth_eigenvalue_is_known_and_positive(
    last: tuple[float, float, bool],
) -> None:
    known = [Eigenvalue(float(value), 1e-9, converged=True) for value in (9, 8, 7, 6)]
    assert math.isnan(Extremes((*known, Eigenvalue(*last)), known[-1], 9).ratio)
    assert Extremes((*known, Eigenvalue(3.0, 1e-9, converged=True)), known[-1], 9).ratio == 3
    assert len(known) + 1 == TOP


def test_random_starts_repeat_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = islice(random_starts(100, torch.zeros(1, dtype=torch.float64)), 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.float64
    assert torch.equal(first, next(random_starts(100, first)))
    assert not torch.equal(first, second)


def test_products_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ProbeError, match="not finite"):
        lanczos(lambda v: v * math.inf, torch.ones(3), 3)


@pytest.mark.parametrize(("start", "products"), [(torch.zeros(3), 3), (torch.ones(3), 0), (torch.ones(3) / 0, 3)])
def test_a_start_without_direction_and_no_products_are_refused(start: Tensor, products: int) -> None:
    with pytest.raises(ValueError, match="give at least 1, and a vector"):
        lanczos(torch.clone, start, products)


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tolerance is -0\.1; give at least 0"):
        extreme_eigenvalues(torch.clone, torch.ones(3), 3, tolerance=-0.1)
