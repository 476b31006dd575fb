"""Figures of a whole spectrum against spectra that are known."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ics_apps.probes.hessian import Hessian
from ics_apps.probes.lanczos import Eigenvalue, Extremes, lanczos, random_starts
from ics_apps.probes.objective import Objective
from ics_apps.probes.spectrum import DEPTH, POINTS, Curvature, Spectrum, curvature


def spectrum_of(
    eigenvalues: np.ndarray | list[float],
    starts: int = 3,
    depth: int = DEPTH,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Spectrum:
    """Of a diagonal matrix: a start on the sphere knows no basis."""
    diagonal = torch.tensor(np.asarray(eigenvalues), dtype=dtype)
    vectors = itertools.islice(random_starts(len(diagonal), diagonal, seed), starts)
    return Spectrum(len(diagonal), tuple(lanczos(lambda v: diagonal * v, vector, depth) for vector in vectors))


class Quadratic(nn.Module):
    """Its loss has a diagonal Hessian."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        super().__init__()
        self.curvature = torch.from_numpy(eigenvalues)
        self.weight = nn.Parameter(torch.ones(len(eigenvalues), dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.curvature * self.weight.square()).sum() / 2


def test_multiples_of_the_identity_are_exact_from_one_start() -> None:
    found = spectrum_of([-2.0] * 7, starts=1)
    assert found.trace == pytest.approx(-14)
    assert found.trace_error == pytest.approx(0, abs=1e-6)
    assert found.negative_mass == pytest.approx(1)
    assert found.effective_rank == pytest.approx(7)


@pytest.mark.parametrize(("size", "starts"), [(60, 2), (5, 10)])
def test_the_trace_is_unbiased_and_its_error_is_the_spread_over_starts(size: int, starts: int) -> None:
    eigenvalues = np.random.default_rng(0).normal(size=size) ** 3
    found = [spectrum_of(eigenvalues, starts, depth=3, seed=seed) for seed in range(400)]
    traces = np.array([each.trace for each in found])
    assert traces.mean() == pytest.approx(eigenvalues.sum(), abs=4 * traces.std() / math.sqrt(len(traces)))
    # The spread of 400 traces is known to 3.5 %: three of these.
    assert np.sqrt(np.mean([each.trace_error**2 for each in found])) == pytest.approx(traces.std(), rel=0.105)


def test_the_trace_lies_within_two_errors_nearly_always() -> None:
    eigenvalues = np.linspace(-1, 3, 500)
    found = [spectrum_of(eigenvalues, seed=seed) for seed in range(100)]
    misses = sum(abs(each.trace - eigenvalues.sum()) > 2 * each.trace_error for each in found)
    assert misses <= 12  # 5 expected; more than 12 have a chance of 1 in 1000


def test_the_negative_mass_is_the_share_of_eigenvalues_below_zero() -> None:
    eigenvalues = np.concatenate([np.linspace(-2, -1, 600), np.linspace(1, 5, 1400)])
    # A start weighs 600 of 2000 eigenvalues at random: a standard deviation of 1.4 % each.
    assert spectrum_of(eigenvalues).negative_mass == pytest.approx(0.3, abs=4 * 0.014 / math.sqrt(3))


def test_eigenvalues_that_are_negligible_beside_the_largest_are_not_negative() -> None:
    generator = np.random.default_rng(0)
    crowd = np.concatenate([generator.normal(size=990) * 1e-5, np.linspace(1, 10, 10)])
    assert spectrum_of(crowd, depth=30).negative_mass == 0
    assert spectrum_of(np.linspace(0, 4, 100), depth=100).negative_mass == 0


def test_the_effective_rank_counts_eigenvalues_of_either_sign() -> None:
    eigenvalues = np.concatenate([np.full(100, 2.0), np.full(100, -2.0), np.zeros(800)])
    # 200 of them at random: a standard deviation of 9 % of each start.
    assert spectrum_of(eigenvalues, starts=10).effective_rank == pytest.approx(200, rel=4 * 0.09 / math.sqrt(10))


def test_the_density_integrates_to_one_and_has_the_mean_of_the_spectrum() -> None:
    found = spectrum_of(np.linspace(-1, 3, 500))
    grid, density = found.density()
    assert len(grid) == len(density) == POINTS
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(density * grid, grid) * 500 == pytest.approx(found.trace, abs=1e-3 * 500)
    below = grid < 1
    assert np.trapezoid(density[below], grid[below]) == pytest.approx(0.5, abs=0.1)


def test_a_single_eigenvalue_has_a_narrow_density() -> None:
    grid, density = spectrum_of([5.0] * 10).density()
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    assert abs(grid - 5).max() < 0.05


def test_a_hessian_of_zero_has_a_trace_and_nothing_else() -> None:
    model = nn.Linear(4, 1)
    with Objective(model, lambda: model(torch.ones(2, 4)).sum()) as objective:
        found = curvature(objective)
    assert found.products == 3
    assert (found.spectrum.trace, found.spectrum.trace_error, found.spectrum.negative_mass) == (0, 0, 0)
    assert math.isnan(found.spectrum.effective_rank)
    assert math.isnan(found.damped_condition)
    assert [len(axis) for axis in found.spectrum.density()] == [0, 0]


def condition_of(largest: float, smallest: float, eigenvalues: list[float]) -> tuple[float, float]:
    ends = [Eigenvalue(value, 0.0, converged=True) for value in (largest, smallest)]
    found = Curvature(Extremes((ends[0],), ends[1], 3), spectrum_of(eigenvalues))
    return found.damped_condition, found.spectrum.damping


def test_the_damped_condition_is_a_quotient_of_ends_above_the_damping() -> None:
    condition, t = condition_of(2.0, 2.0, [2.0] * 5)
    assert t == pytest.approx(2)
    assert condition == 1
    condition, t = condition_of(4.0, 1.0, [2.0] * 5)
    assert condition == pytest.approx((4 + t) / (1 + t))


@pytest.mark.parametrize("smallest", [0.0, -1e-17, -3.0])
def test_a_smallest_eigenvalue_of_zero_or_below_leaves_the_damping_alone(smallest: float) -> None:
    condition, t = condition_of(2.0, smallest, [2.0] * 5)
    assert condition == pytest.approx(1 + 2 / t)


def test_a_spectrum_without_positive_eigenvalues_has_no_condition() -> None:
    assert math.isnan(condition_of(-1.0, -2.0, [-2.0, -1.0])[0])


def test_the_damping_is_not_below_rounding() -> None:
    found = spectrum_of([1.0, *[0.0] * 10])
    assert found.damping == pytest.approx(found.mean(np.abs))
    coarse = Spectrum(found.size, tuple(dataclasses.replace(run, floor=0.5) for run in found.runs))
    assert coarse.damping == 0.5


def test_the_curvature_of_a_quadratic_has_its_ends_and_its_figures() -> None:
    eigenvalues = np.concatenate([[-7.0], np.linspace(-1, 1, 2000), [5.0, 6, 8, 10, 30]])
    model = Quadratic(eigenvalues)
    with Objective(model, model) as objective:
        found = curvature(objective)
    assert found.products == found.extremes.products + 2 * DEPTH <= 70
    assert found.extremes.largest[0].value == pytest.approx(30, rel=1e-6)
    assert found.extremes.smallest.value == pytest.approx(-7, rel=1e-6)
    assert found.extremes.ratio == pytest.approx(6, rel=1e-3)
    assert found.spectrum.trace == pytest.approx(eigenvalues.sum(), abs=4 * found.spectrum.trace_error)


@pytest.mark.parametrize(("max_products", "starts"), [(15, 1), (45, 3), (50, 2), (90, 4)])
def test_no_more_products_are_taken_than_allowed(max_products: int, starts: int) -> None:
    model = Quadratic(np.sort(np.random.default_rng(0).normal(size=300)))
    with Objective(model, model) as objective:
        found = curvature(objective, max_products, starts, tolerance=0.0)
    assert found.products == max_products
    assert len(found.spectrum.runs) == starts


def test_a_net_gives_what_its_exact_hessian_gives() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(0, 3, (32,))
    with Objective(net, lambda: nn.functional.cross_entropy(net(x), y)) as objective:
        hessian = Hessian(objective)
        rows = [hessian.product(e) for e in torch.eye(hessian.size, dtype=torch.float64)]
        found = curvature(objective, max_products=400, starts=20)
    true = np.linalg.eigvalsh(torch.stack(rows).numpy())
    spectrum = found.spectrum
    assert spectrum.trace == pytest.approx(true.sum(), abs=3 * spectrum.trace_error)
    assert spectrum.trace_error < 0.2 * true.sum()
    assert found.extremes.ratio == pytest.approx(true[-1] / true[-5], rel=1e-3)
    assert spectrum.effective_rank == pytest.approx(np.abs(true).sum() ** 2 / np.square(true).sum(), rel=0.25)


def test_the_negative_mass_of_a_crowd_around_zero_is_known_to_a_tenth() -> None:
    """Where the Ritz values of a single depth put it on one side or the other."""
    errors, errors_of_one_depth = [], []
    for seed in range(8):
        eigenvalues = np.random.default_rng(seed).standard_t(2, size=600) + 0.1
        true = (eigenvalues < -1e-3 * np.abs(eigenvalues).max()).mean()
        found = spectrum_of(eigenvalues, seed=seed)
        errors.append(found.negative_mass - true)
        errors_of_one_depth.append(found.mean(lambda values: (values < 0).astype(float)) - true)
    assert np.abs(errors).mean() < 0.1
    assert np.abs(errors_of_one_depth).mean() > 1.5 * np.abs(errors).mean()


@pytest.mark.parametrize(("max_products", "starts", "says"), [(44, 3, "need at least 45"), (60, 0, "give at least 1")])
def test_a_budget_that_is_too_small_is_refused(max_products: int, starts: int, says: str) -> None:
    model = Quadratic(np.ones(2))
    with Objective(model, model) as objective, pytest.raises(ValueError, match=says):
        curvature(objective, max_products, starts)
