"""Statistics of samples on the host: moments, quantiles and shares of many rows at once.

Which elements are read is in `sampling`; what is counted in bins or by channel is in `histogram` and `channels`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ics_apps.probes.activations.sampling import locate, read
from ics_apps.probes.activations.saturation import tails_of

Float64 = NDArray[np.float64]
Bounds = tuple[float, float]

GRID: Final = 64  # quantiles kept for the Wasserstein distance: at (k - 1/2) / 64
PERCENT: Final = (15, 50, 85)
_LEVELS: Final = np.array([*(p / 100 for p in PERCENT), *((k - 0.5) / GRID for k in range(1, GRID + 1))])
NO_BOUNDS: Final[Bounds] = (-math.inf, math.inf)  # never saturated


@dataclass(frozen=True, slots=True)
class Description:
    """Statistics of R rows.

    Attributes:
        ordered: float32 `(R, n)`, each row ascending, what is not finite at its end.
        kept: how many values of each row are finite, `(R,)`.
        grid: quantiles at (k - 1/2) / 64, `(R, 64)`.
        figures: `mean`, `std` (biased), `rms`, `min`, `max`, `skewness`, `kurtosis` (3 for a Gaussian), `q15`, `q50`,
            `q85`, `zero_fraction`, `saturated_fraction`, `(R,)` each: NaN in rows with no finite value.
    """

    ordered: NDArray[np.float32]
    kept: NDArray[np.int64]
    grid: Float64
    figures: dict[str, Float64]


def describe(rows: NDArray[np.float32], bounds: Float64) -> Description:
    """Describe each row by its finite values.

    mean = sum v / n; M_k = sum (v - mean)^k / n; std = sqrt(M_2), skewness = M_3 / M_2^1.5, kurtosis = M_4 / M_2^2, in
    float64 about the mean: nothing cancels and nothing overflows. A constant row has skewness 0 and kurtosis NaN.
    Quantiles are interpolated linearly between neighbours, as `numpy.quantile` does.

    Args:
        rows: float32 `(R, n)`, places not in use hold NaN; it is overwritten.
        bounds: `(R, 2)`: values from which on the activation is saturated, low and high.

    Returns:
        The description.

    Example:
        >>> row = np.array([[3.0, 1.0, 2.0, np.nan]], np.float32)
        >>> found = describe(row, np.array([NO_BOUNDS]))
        >>> found.figures["mean"].tolist(), found.figures["q50"].tolist(), found.kept.tolist()
        ([2.0], [2.0], [3])

    Reference: ours.
    """
    finite = np.isfinite(rows)
    kept = finite.sum(axis=1)
    is_full = finite.all()
    if not is_full:
        rows[~finite] = np.nan
    rows.sort(axis=1)
    exact = rows.astype(np.float64)
    number = np.where(kept > 0, kept, np.nan)
    if is_full:
        mean = exact.sum(axis=1) / number
        gap = exact - mean[:, None]
    else:  # what is not there is 0 and adds nothing
        there = np.arange(rows.shape[1]) < kept[:, None]
        exact[~there] = 0.0
        mean = exact.sum(axis=1) / number
        gap = np.where(there, exact - mean[:, None], 0.0)
    squared = gap * gap
    second = squared.sum(axis=1) / number
    third = np.einsum("ij,ij->i", squared, gap) / number
    fourth = np.einsum("ij,ij->i", squared, squared) / number
    spread = np.where(second > 0, second, np.nan)
    quantiles = _quantiles(exact, kept)
    filled = np.where(kept > 0, 1.0, np.nan)
    figures = {
        "mean": mean,
        "std": np.sqrt(second),
        "rms": np.sqrt(mean**2 + second),
        "min": exact[:, 0] * filled,
        "max": exact[np.arange(len(rows)), np.maximum(kept - 1, 0)] * filled,
        "skewness": np.where(second > 0, third / spread**1.5, 0.0 * filled),
        "kurtosis": fourth / spread**2,
        **{f"q{percent}": quantiles[:, place] for place, percent in enumerate(PERCENT)},
        "zero_fraction": (rows == 0).sum(axis=1) / number,
        "saturated_fraction": _beyond(rows, bounds) / number,
    }
    return Description(rows, kept, quantiles[:, len(PERCENT) :], figures)


def summarise(x: Tensor, size: int = 1024, turn: int = 0, activation: nn.Module | None = None) -> dict[str, float]:
    """Statistics of one tensor from a strided sample of at most `size` elements.

    Args:
        x: any floating-point tensor.
        size: elements read at most.
        turn: number of the sample; it moves the offset.
        activation: the module whose output `x` is, for the saturated fraction (output thresholds only).

    Returns:
        `count`, the figures of `Description` (`saturated_fraction` is NaN if it is not defined for the activation) and
        `nonfinite_count`.

    Example:
        >>> import torch
        >>> figures = summarise(torch.tensor([0.0, 1.0, 2.0, 3.0, float("nan")]))
        >>> figures["mean"], figures["max"], figures["zero_fraction"], figures["nonfinite_count"]
        (1.5, 3.0, 0.25, 1.0)

    Reference: ours.
    """
    sample = read(x, locate(x, size, turn)).float().cpu().numpy()[None].copy()
    tails = None if activation is None else tails_of(activation)
    known = tails is not None and tails.side == "output"
    found = describe(sample, np.array([(tails.low, tails.high) if known and tails else NO_BOUNDS]))
    figures = {name: float(values[0]) for name, values in found.figures.items()}
    if not known:
        figures["saturated_fraction"] = math.nan
    return {"count": float(sample.size), **figures, "nonfinite_count": float(sample.size - found.kept[0])}


def _beyond(rows: NDArray[np.float32], bounds: Float64) -> NDArray[np.int64]:
    """How many values of each row lie on or beyond its bounds."""
    if np.isinf(bounds).all():
        return np.zeros(len(rows), np.int64)
    edges = bounds.astype(np.float32)
    beyond: NDArray[np.int64] = ((rows <= edges[:, :1]) | (rows >= edges[:, 1:])).sum(axis=1)
    return beyond


def _quantiles(exact: Float64, kept: NDArray[np.int64]) -> Float64:
    """The levels of each row, `(R, levels)`, NaN where nothing is kept."""
    place = np.maximum(kept - 1, 0)[:, None] * _LEVELS
    below = place.astype(np.int64)
    lower = np.take_along_axis(exact, below, axis=1)
    upper = np.take_along_axis(exact, np.minimum(below + 1, np.maximum(kept - 1, 0)[:, None]), axis=1)
    quantiles: Any = lower + (place - below) * (upper - lower)
    quantiles[kept == 0] = np.nan
    return np.asarray(quantiles)
