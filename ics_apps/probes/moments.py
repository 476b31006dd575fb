"""Statistics of samples: the reduction on the device, and their exact form on the host.

Also the batch moments that a norm's running statistics give away. Which elements are read is in `sampling`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ics_apps.probes.sampling import locate, read
from ics_apps.probes.saturation import tails_of

FloatArray = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

GRID: Final = 64  # quantiles kept for the Wasserstein distance: at (k - 1/2) / 64
PERCENT: Final = (15, 50, 85)
# All levels as integers over one denominator, so that places in a row are exact without float64 on the device:
# minimum, maximum, the percentiles, the grid.
DENOMINATOR: Final = 64 * 50
LEVELS: Final = (0, DENOMINATOR, *(p * 32 for p in PERCENT), *((2 * k - 1) * 25 for k in range(1, GRID + 1)))
MEDIAN: Final = LEVELS.index(DENOMINATOR // 2)
NO_BOUNDS: Final = (-math.inf, math.inf)  # never saturated

# Layout of one reduced row: counts of values below a mark, sums, then the values around each level.
KEPT, BELOW_ZERO, BELOW_HIGH, UP_TO_ZERO, UP_TO_LOW, SCALE, FIRST, SECOND = range(8)
LOWER: Final = 8
UPPER: Final = LOWER + len(LEVELS)
WIDTH: Final = UPPER + len(LEVELS)
TINY: Final = float(np.finfo(np.float32).tiny)
HUGE: Final = float(np.finfo(np.float32).max)


def marks(bounds: tuple[float, float]) -> tuple[float, ...]:
    """The values at which a row is counted: below inf, 0 and the upper bound, then up to 0 and the lower bound."""
    low, high = bounds
    return (math.inf, 0.0, high, 0.0, low)


def reduce_rows(samples: Tensor, at: Tensor) -> Tensor:
    """Reduce each row of samples to the figures its statistics are made of, with no transfer to the host.

    Each row is sorted once; counts are then places in it, found by bisection. Over the finite values v of a row, with s
    their median element and a = max|v - s|: the sums of y and y^2, y = (v - s) / a. Shifting by an element near the
    centre keeps the variance exact when mean >> std; dividing by a keeps squares inside float32.

    Args:
        samples: float32 `(R, n)`; places not in use hold NaN.
        at: float32 `(R, 5)`, `marks` of each row's saturation bounds.

    Returns:
        float32 `(R, WIDTH)`; `unpack` turns it into statistics.

    Reference: shifted moments, Chan, Golub and LeVeque 1983; the layout is ours.
    """
    # What is not finite goes to the end of the row.
    ordered = _sorted(samples.nan_to_num(math.inf, math.inf, math.inf))
    below = torch.searchsorted(ordered, at[:, :UP_TO_ZERO].contiguous())
    up_to = torch.searchsorted(ordered, at[:, UP_TO_ZERO:].contiguous(), right=True)
    target = (below[:, :1] - 1).clamp_min_(0) * _levels(samples.device)
    lower = ordered.gather(1, target.div(DENOMINATOR, rounding_mode="floor"))
    upper = ordered.gather(1, target.add_(DENOMINATOR - 1).div_(DENOMINATOR, rounding_mode="floor"))
    low, high, shift = lower[:, :1], lower[:, 1:2], lower[:, MEDIAN : MEDIAN + 1]
    scale = torch.maximum(high - shift, shift - low).clamp_(TINY, HUGE)
    # Infinities become 0 here and add nothing to the sums.
    y = (ordered - shift).div_(scale).nan_to_num_(0.0, 0.0, 0.0)
    first, second = y.sum(1, keepdim=True), y.square().sum(1, keepdim=True)
    return torch.cat([below.float(), up_to.float(), scale, first, second, lower, upper], dim=1)


def unpack(reduced: FloatArray) -> dict[str, FloatArray]:
    """Statistics from reduced rows, in float64.

    mean = s + a m1, var = a^2 (m2 - m1^2) (biased), rms^2 = mean^2 + var; quantiles are interpolated linearly between
    neighbours, as `numpy.quantile` does. Fractions are of the finite values.

    Args:
        reduced: `(R, WIDTH)` from `reduce_rows`.

    Returns:
        `kept`, `mean`, `std`, `rms`, `min`, `max`, `q15`, `q50`, `q85`, `zero_fraction`, `saturated_fraction`, each
        `(R,)`, and `grid` `(R, 64)`: NaN in rows with no finite value.

    Reference: ours.
    """
    rows = reduced.astype(np.float64)
    kept = rows[:, KEPT]
    rows = np.where(kept[:, None] > 0, rows, np.nan)
    number = np.maximum(kept, 1)
    first, second = rows[:, FIRST] / number, rows[:, SECOND] / number
    lower, upper = rows[:, LOWER:UPPER], rows[:, UPPER:WIDTH]
    mean = lower[:, MEDIAN] + rows[:, SCALE] * first
    variance = rows[:, SCALE] ** 2 * np.maximum(second - first**2, 0.0)
    share = (number - 1)[:, None] * np.array(LEVELS) % DENOMINATOR / DENOMINATOR
    quantiles = lower + share * (upper - lower)
    saturated = rows[:, UP_TO_LOW] + rows[:, KEPT] - rows[:, BELOW_HIGH]
    statistics = {
        "kept": kept,
        "mean": mean,
        "std": np.sqrt(variance),
        "rms": np.sqrt(mean**2 + variance),
        "min": lower[:, 0],
        "max": lower[:, 1],
        "zero_fraction": (rows[:, UP_TO_ZERO] - rows[:, BELOW_ZERO]) / number,
        "saturated_fraction": saturated / number,
        "grid": quantiles[:, -GRID:],
    }
    for place, percent in enumerate(PERCENT):
        statistics[f"q{percent}"] = quantiles[:, 2 + place]
    return statistics


def summarise(x: Tensor, size: int = 4096, turn: int = 0, activation: nn.Module | None = None) -> dict[str, float]:
    """Statistics of one tensor from a strided sample of at most `size` elements.

    Args:
        x: any floating-point tensor.
        size: elements read at most.
        turn: number of the sample; it moves the offset.
        activation: the module whose output `x` is, for the saturated fraction (output thresholds only).

    Returns:
        `count`, `mean`, `std` (biased), `rms`, `min`, `max`, `q15`, `q50`, `q85`, `zero_fraction`,
        `saturated_fraction` (NaN if it is not defined for the activation), `nonfinite_count`.

    Example:
        >>> figures = summarise(torch.tensor([0.0, 1.0, 2.0, 3.0, float("nan")]))
        >>> figures["mean"], figures["max"], figures["zero_fraction"], figures["nonfinite_count"]
        (1.5, 3.0, 0.25, 1.0)

    Reference: ours.
    """
    sample = read(x, locate(x, size, turn)).float()[None]
    tails = None if activation is None else tails_of(activation)
    known = tails is not None and tails.side == "output"
    at = torch.tensor([marks((tails.low, tails.high) if known and tails else NO_BOUNDS)], device=x.device)
    statistics = unpack(reduce_rows(sample, at).cpu().numpy())
    statistics.pop("grid")
    kept = float(statistics.pop("kept")[0])
    figures = {name: float(values[0]) for name, values in statistics.items()}
    if not known:
        figures["saturated_fraction"] = math.nan
    return {"count": float(sample.shape[1]), **figures, "nonfinite_count": sample.shape[1] - kept}


def batch_moments(
    old_mean: ArrayLike, old_var: ArrayLike, new_mean: ArrayLike, new_var: ArrayLike, momentum: float
) -> tuple[Float64, Float64]:
    """The exact batch mean and unbiased variance of each channel, from the change of the running statistics.

    mean_B = r_old + (r_new - r_old) / momentum, and the same for the variance: no pass over the activations. Rounding
    of the float32 buffers grows by 1 / momentum: about 5e-7 at 0.1.

    Args:
        old_mean: running mean before the forward, `(C,)`.
        old_var: running variance before it.
        new_mean: running mean after it.
        new_var: running variance after it.
        momentum: weight of the new value, in [0, 1] (torch's meaning); at 0 the batch leaves no trace: NaN.

    Returns:
        Batch mean and unbiased batch variance, `(C,)` each.

    Example:
        >>> mean, var = batch_moments([0.0], [1.0], [0.5], [2.0], momentum=0.5)
        >>> mean.tolist(), var.tolist()
        ([1.0], [3.0])

    Reference: ours, by solving torch's update rule r_new = (1 - momentum) r_old + momentum batch.
    """
    weight = momentum if momentum > 0 else math.nan
    mean_before, mean_after = np.asarray(old_mean, np.float64), np.asarray(new_mean, np.float64)
    var_before, var_after = np.asarray(old_var, np.float64), np.asarray(new_var, np.float64)
    return mean_before + (mean_after - mean_before) / weight, var_before + (var_after - var_before) / weight


def running_gap(
    old_mean: ArrayLike, old_var: ArrayLike, new_mean: ArrayLike, momentum: float, eps: float = 1e-5
) -> float:
    """How far a batch lies from what a norm layer will use in evaluation: the train/eval mismatch.

    median over channels of |mean_B - r_old| / sqrt(v_old + eps), with r_old the running mean without this batch.

    Args:
        old_mean: running mean before the forward, `(C,)`.
        old_var: running variance before it.
        new_mean: running mean after it.
        momentum: weight of the new value, in [0, 1]; at 0 the gap is NaN.
        eps: the layer's eps.

    Returns:
        The gap, in running standard deviations.

    Example:
        >>> running_gap([0.0] * 4, [1.0] * 4, [0.2] * 4, momentum=0.1, eps=0.0)
        2.0

    Reference: ours.
    """
    mean, _ = batch_moments(old_mean, old_var, new_mean, old_var, momentum)
    gap = np.sort(np.abs(mean - np.asarray(old_mean)) / np.sqrt(np.asarray(old_var) + eps))
    # np.median takes ten times as long for a few hundred channels.
    return float(gap[(len(gap) - 1) // 2] + gap[len(gap) // 2]) / 2


@functools.cache
def _levels(device: torch.device) -> Tensor:
    # Kept: building it anew would be a copy from the host at each reduction.
    return torch.tensor(LEVELS, device=device)


def _sorted(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        # numpy's vectorised sort takes 17 us for 4,096 float32, torch's 260 us (it also builds the indices).
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(1).values
