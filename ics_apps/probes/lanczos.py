"""Eigenvalues of a symmetric matrix that is known by its products with vectors: Lanczos, with a bound on each.

Which matrix it is, is said elsewhere: `hessian` has that of a loss, `spectrum` what many eigenvalues add up to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ics_apps.probes.preserve import ProbeError

Float64 = NDArray[np.float64]
Product = Callable[[Tensor], Tensor]

TOP: Final = 5  # how many of the largest eigenvalues are reported
ROUNDING: Final = 10  # so many floors are still rounding: what is below cannot be made smaller


@dataclass(frozen=True, slots=True)
class Ritz:
    """What m steps of Lanczos know of a matrix H: T = V'HV, T s = theta s, with V's first column the start.

    Attributes:
        values: theta, ascending, `(m,)`. None lies outside the eigenvalues of H, up to `floor`.
        bounds: of each, `(m,)`: some eigenvalue of H lies in theta +- bound. It is the residual ||H y - theta y|| of
            y = V s, that is beta_m |s_m| and what the products lack in symmetry, and at least `floor`.
        weights: squared first entries of s, `(m,)`; they add up to 1. sum weight_i f(theta_i) is a Gauss quadrature of
            v'f(H)v for the start v, exact for polynomials f of degree below 2 m.
        floor: what rounding alone may do: epsilon max|theta| sqrt(m).
        diagonal: of T, `(m,)`.
        beside: beta, beside T's diagonal, `(m - 1,)`.
    """

    values: Float64
    bounds: Float64
    weights: Float64
    floor: float
    diagonal: Float64
    beside: Float64

    @property
    def products(self) -> int:
        """How many products it took."""
        return len(self.values)

    def quadratures(self) -> Iterator[tuple[Float64, Float64]]:
        """Values and weights as they were after m/2, ..., m steps: that many quadratures, for the products of one."""
        for depth in range((self.products + 1) // 2, self.products + 1):
            values, vectors = _eigen(self.diagonal[:depth], self.beside[: depth - 1])
            yield values, np.square(vectors[0])


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """One eigenvalue as far as it is known.

    Attributes:
        value: the Ritz value theta.
        bound: some eigenvalue lies in value +- bound.
        converged: whether the bound is at most the tolerance times |value|, or as small as rounding
            lets it be.
    """

    value: float
    bound: float
    converged: bool


@dataclass(frozen=True, slots=True)
class Extremes:
    """Both ends of a spectrum.

    Attributes:
        largest: the largest eigenvalues, descending: `TOP` of them, fewer if fewer were found. An eigenvalue that
            several directions share is found once (again only where rounding leads to it).
        smallest: the smallest one. It is the most negative, not the one nearest to 0.
        products: how many products with the matrix it took.
    """

    largest: tuple[Eigenvalue, ...]
    smallest: Eigenvalue
    products: int

    @property
    def converged(self) -> bool:
        """Whether all of them are."""
        return len(self.largest) == TOP and all(found.converged for found in (*self.largest, self.smallest))

    @property
    def ratio(self) -> float:
        """lambda_1 / lambda_5; NaN if one of them has not converged, or the fifth is missing or not positive."""
        first, last = self.largest[0], self.largest[-1]
        known = len(self.largest) == TOP and first.converged and last.converged
        return first.value / last.value if known and last.value > last.bound else math.nan


def extreme_eigenvalues(
    product: Product, start: Tensor, max_products: int = 40, tolerance: float = 1e-3, epsilon: float | None = None
) -> Extremes:
    """The largest five eigenvalues of a symmetric matrix H and its smallest, by Lanczos.

    It ends when every bound is at most `tolerance` times its value (or at rounding), when the Krylov space of the start
    is exhausted, or after `max_products`. What has not converged then is marked.

    The largest value is never above lambda_max, up to rounding, and its bound says that an eigenvalue is near. That no
    larger one exists, no method of this kind can certify: it would go unseen if the start had next to no part in it,
    which for a Gaussian start is improbable.

    Args:
        product: v -> H v, both `(n,)`.
        start: any vector but 0, `(n,)`; a Gaussian one has a part in every direction.
        max_products: the most products, >= 1. As many vectors of n numbers are kept.
        tolerance: of the bounds, relative, >= 0.
        epsilon: relative rounding of the products; that of the start's dtype by default.

    Returns:
        The eigenvalues with their bounds.

    Raises:
        ProbeError: a product is not finite.
        ValueError: an argument out of range.

    Example:
        >>> diagonal = torch.tensor([-1.0, 0.5, 1.0, 2.0, 3.0, 8.0], dtype=torch.float64)
        >>> found = extreme_eigenvalues(lambda v: diagonal * v, torch.ones(6, dtype=torch.float64))
        >>> [round(value.value, 9) for value in found.largest], round(found.smallest.value, 9), found.products
        ([8.0, 3.0, 2.0, 1.0, 0.5], -1.0, 6)

    Reference: Lanczos 1950; residual bounds: Parlett 1980, The Symmetric Eigenvalue Problem, section 13.2.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; give at least 0.")
    return extremes_of(
        lanczos(product, start, max_products, epsilon, stop=lambda ritz: extremes_of(ritz, tolerance).converged),
        tolerance,
    )


def extremes_of(ritz: Ritz, tolerance: float = 1e-3) -> Extremes:
    """The ends of what Lanczos found."""
    limits = np.maximum(tolerance * np.abs(ritz.values), ROUNDING * ritz.floor)
    found = [
        Eigenvalue(float(value), float(bound), bool(bound <= limit))
        for value, bound, limit in zip(ritz.values, ritz.bounds, limits, strict=True)
    ]
    return Extremes(tuple(found[::-1][:TOP]), found[0], ritz.products)


def lanczos(
    product: Product,
    start: Tensor,
    max_products: int,
    epsilon: float | None = None,
    stop: Callable[[Ritz], bool] | None = None,
) -> Ritz:
    """Lanczos with full re-orthogonalisation: every vector is made orthogonal to all before it, twice.

    Memory: min(max_products, n) vectors of n numbers, in the start's dtype; the small matrix is float64.

    Args:
        product: v -> H v, both `(n,)`, H symmetric.
        start: any vector but 0, `(n,)`.
        max_products: the most steps, >= 1; one product each.
        epsilon: relative rounding of the products; that of the start's dtype by default.
        stop: asked after each step whether that will do.

    Returns:
        What is known after the last step, all of it if the start's Krylov space was exhausted (beta within ten
        floors).

    Raises:
        ProbeError: a product is not finite.
        ValueError: an argument out of range.

    Example:
        >>> lanczos(lambda v: 3 * v, torch.ones(4), max_products=4).values.tolist()
        [3.0]

    Reference: Lanczos 1950; twice is enough: Giraud et al. 2005. The bound's part from lost symmetry is ours.
    """
    length = float(torch.linalg.vector_norm(start))
    if max_products < 1 or not 0 < length < math.inf:
        raise ValueError(f"max_products is {max_products} and the start {length} long; give at least 1, and a vector.")
    eps = torch.finfo(start.dtype).eps if epsilon is None else epsilon
    steps = min(max_products, start.numel())
    basis = start.new_empty(steps, start.numel())
    seen, beta = np.zeros((steps, steps)), np.zeros(steps)
    basis[0] = start / length
    for step in range(steps):
        known = basis[: step + 1]
        rest, parts = _orthogonal(product(basis[step]), known)
        seen[: step + 1, step] = parts.double().cpu().numpy()
        beta[step] = float(torch.linalg.vector_norm(rest))
        if not math.isfinite(beta[step]):
            raise ProbeError("A product with the matrix is not finite: measure earlier, or in a wider precision.")
        ritz = _ritz(seen[: step + 1, : step + 1], beta[: step + 1], eps)
        if step + 1 == steps or beta[step] <= ROUNDING * ritz.floor or (stop is not None and stop(ritz)):
            break
        basis[step + 1] = rest / beta[step]
    return ritz


def random_starts(size: int, like: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Gaussian vectors `(size,)` with the dtype and device of `like`, from a generator of their own, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(size, generator=generator).to(like)


def _orthogonal(image: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """What of it lies outside the known vectors, and its parts along them."""
    first = known @ image
    rest = image - first @ known
    second = known @ rest
    return rest - second @ known, first + second


def _ritz(seen: Float64, beta: Float64, epsilon: float) -> Ritz:
    """Ritz values of T, with the diagonal of V'HV as `seen` and beta beside it."""
    values, vectors = _eigen(np.diag(seen), beta[:-1])
    # H V = V seen + beta v e': in exact arithmetic `seen` is T; what it has besides is the products' rounding.
    astray = np.linalg.norm((np.triu(seen, 1) - np.diag(beta[:-1], 1)) @ vectors, axis=0)
    floor = epsilon * float(np.abs(values).max()) * math.sqrt(len(values))
    bounds = np.maximum(np.hypot(beta[-1] * vectors[-1], astray), floor)
    return Ritz(values, bounds, np.square(vectors[0]), floor, np.diag(seen).copy(), beta[:-1].copy())


def _eigen(diagonal: Float64, beside: Float64) -> tuple[Float64, Float64]:
    """Eigenvalues and eigenvectors of a symmetric tridiagonal matrix."""
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return values, vectors
