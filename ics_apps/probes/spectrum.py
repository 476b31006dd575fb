"""The spectrum of a loss's Hessian as a whole, by stochastic Lanczos quadrature, beside its ends.

The products are `hessian`, one run of Lanczos is `lanczos`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ics_apps.probes.hessian import Hessian
from ics_apps.probes.lanczos import ROUNDING, Extremes, Float64, Ritz, extremes_of, lanczos, random_starts
from ics_apps.probes.objective import Objective

DEPTH: Final = 15  # products of each random start after the first
NEGLIGIBLE: Final = 1e-3  # an eigenvalue below this share of the largest |eigenvalue| counts as 0
POINTS: Final = 201  # of the density's grid
WIDTH: Final = 0.01  # of the density's Gaussians, as a share of the range of eigenvalues


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What Lanczos from k random unit starts says of all n eigenvalues: their mean of any function.

    mean f(lambda) = tr f(H) / n ~ (1/k) sum_l sum_i weight_li f(theta_li). A start's error is that of random weights of
    the eigenvalues, chi-square each: with r large eigenvalues, figures vary by about sqrt(2 / (k r)).

    Attributes:
        size: n.
        runs: one a start, uniform on the sphere; their depths may differ.

    Example:
        >>> import torch
        >>> diagonal = torch.tensor([3.0, 3.0, 3.0, 3.0])
        >>> starts = itertools.islice(random_starts(4, diagonal), 2)
        >>> runs = [lanczos(lambda v: diagonal * v, start, 4) for start in starts]
        >>> found = Spectrum(4, tuple(runs))
        >>> round(found.trace, 4), round(found.trace_error, 4), round(found.effective_rank, 4), found.negative_mass
        (12.0, 0.0, 4.0, 0.0)

    Reference: Lin, Saad & Yang 2016 (1308.5467); Ghorbani et al. 2019 (1901.10159).
    """

    size: int
    runs: tuple[Ritz, ...]

    def mean(self, function: Callable[[Float64], Float64]) -> float:
        """The mean of a function over the eigenvalues."""
        return float(np.mean([run.weights @ function(run.values) for run in self.runs]))

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues: (n/k) sum_l v_l'H v_l: Hutchinson's estimator, at no further product."""
        return self.size * self.mean(lambda values: values)

    @property
    def trace_error(self) -> float:
        """The trace's standard error, sqrt(2 n / (n + 2) (||H||_F^2 - tr(H)^2 / n) / k), for starts on the sphere.

        ||H||_F^2 is estimated from the same starts, n v'H^2 v, so that one start is enough.
        """
        squares = self.size * self.mean(np.square)
        variance = 2 * self.size / (self.size + 2) * max(squares - self.trace**2 / self.size, 0.0)
        return math.sqrt(variance / len(self.runs))

    @property
    def largest_size(self) -> float:
        """The largest |theta|."""
        return float(max(np.abs(run.values).max() for run in self.runs))

    @property
    def floor(self) -> float:
        """What rounding alone may do to an eigenvalue."""
        return max(run.floor for run in self.runs)

    @property
    def negative_mass(self) -> float:
        """The share of eigenvalues below -max(10 floor, max|lambda| / 1000), in [0, 1]; the others count as 0.

        A quadrature is good for smooth functions, and a count is none: one Ritz value stands for a crowd near 0, and
        which side it lies on turns with the depth, for all starts alike. So the count is the mean over depths m/2 to m.
        It is then mostly within 0.1 of the truth (a single depth: 0.3).
        """
        threshold = max(ROUNDING * self.floor, NEGLIGIBLE * self.largest_size)
        shares = [
            np.mean([weights[values < -threshold].sum() for values, weights in run.quadratures()]) for run in self.runs
        ]
        return float(np.mean(shares))

    @property
    def effective_rank(self) -> float:
        """(sum |lambda|)^2 / sum lambda^2, in [1, n]: how many eigenvalues carry the curvature; NaN if H is 0."""
        squares = self.mean(np.square)
        return self.size * self.mean(np.abs) ** 2 / squares if squares > 0 else math.nan

    @property
    def damping(self) -> float:
        """The damping t = max(floor, mean |lambda|), for `Curvature.damped_condition`."""
        return max(self.floor, self.mean(np.abs))

    def density(self) -> tuple[Float64, Float64]:
        """The density of eigenvalues, sum weight N(theta, s^2) with s 1 % of their range, on `POINTS` points.

        Returns:
            Eigenvalues, evenly spaced from 4 s below the smallest to 4 s above the largest, and the density there, in
            shares per unit of eigenvalue: its integral is 1. Both empty if H is 0.
        """
        if self.largest_size == 0:
            return np.zeros(0), np.zeros(0)
        values = np.concatenate([run.values for run in self.runs])
        weights = np.concatenate([run.weights for run in self.runs]) / len(self.runs)
        # One single eigenvalue has no range.
        width = max(WIDTH * float(np.ptp(values)), NEGLIGIBLE * self.largest_size)
        grid = np.linspace(values.min() - 4 * width, values.max() + 4 * width, POINTS)
        bells = np.exp(-0.5 * np.square((grid[:, None] - values) / width)) / (width * math.sqrt(2 * math.pi))
        return grid, bells @ weights


@dataclass(frozen=True, slots=True)
class Curvature:
    """The Hessian of a batch's loss in figures.

    Attributes:
        extremes: its five largest eigenvalues and its smallest.
        spectrum: of all of them.
    """

    extremes: Extremes
    spectrum: Spectrum

    @property
    def products(self) -> int:
        """Products with the Hessian, all together."""
        return sum(run.products for run in self.spectrum.runs)

    @property
    def damped_condition(self) -> float:
        """(lambda_max + t) / (max(lambda_min, 0) + t), t = `spectrum.damping`; NaN if H is 0 or lambda_max < 0.

        The plain quotient is rounding: lambda_min of an over-parametrised net is 0, or negative. With lambda_min <= 0
        this is 1 + lambda_max / mean |lambda|: how far the largest eigenvalue stands out. A smaller t would be lost in
        the rounding of lambda_max in nets of 100,000 weights.
        """
        t, largest, smallest = self.spectrum.damping, self.extremes.largest[0].value, self.extremes.smallest.value
        return (largest + t) / (max(smallest, 0.0) + t) if t > 0 and largest >= 0 else math.nan


def curvature(objective: Objective, max_products: int = 70, starts: int = 3, tolerance: float = 1e-3) -> Curvature:
    """Measure the Hessian of a batch's loss: both ends of its spectrum, and the spectrum as a whole.

    The first of the random starts serves both: it is followed until the ends have converged, or there are products
    left for 15 steps of each other start only. The starts are the same at every call.

    Memory: the graph of the gradient, and as many vectors of all weights as the first start takes products.

    Args:
        objective: the loss of the batch, open.
        max_products: the most Hessian-vector products, two to three gradients each; at least 15 a start.
        starts: k, random starts, >= 1.
        tolerance: of the bounds at the ends, relative, see `extreme_eigenvalues`.

    Returns:
        The figures.

    Raises:
        ProbeError: the loss cannot be differentiated twice, or a product is not finite.
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> with Objective(model, lambda: model(torch.tensor([[1.0, 2.0]])).square().sum()) as objective:
        ...     found = curvature(objective)  # H = 2 x x': 10 and 0
        >>> round(found.extremes.largest[0].value, 4), found.products
        (10.0, 6)

    Reference: Lanczos and quadrature as in `lanczos` and `Spectrum`; one start for both is ours.
    """
    check_budget(max_products, starts)
    hessian = Hessian(objective)
    vectors = random_starts(hessian.size, hessian.gradient)
    first = lanczos(
        hessian.product,
        next(vectors),
        max_products - DEPTH * (starts - 1),
        hessian.epsilon,
        stop=lambda ritz: ritz.products >= DEPTH and extremes_of(ritz, tolerance).converged,
    )
    others = (
        lanczos(hessian.product, start, DEPTH, hessian.epsilon) for start in itertools.islice(vectors, starts - 1)
    )
    return Curvature(extremes_of(first, tolerance), Spectrum(hessian.size, (first, *others)))


def check_budget(max_products: int, starts: int) -> None:
    """Refuse a number of products that is too small for so many starts."""
    if starts < 1:
        raise ValueError(f"starts is {starts}; give at least 1.")
    if max_products < DEPTH * starts:
        raise ValueError(f"max_products is {max_products}; {starts} starts need at least {DEPTH * starts}.")
