"""How intensities become numbers of order one: by the case, or by the whole training set (CT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ics_apps.nearest import did_you_mean

Normalize = Literal["case", "none", "zscore_nonzero", "unit", "ct"]
PER_CASE: Final = ("case", "none", "zscore_nonzero", "unit")
NORMALIZE: Final = (*PER_CASE, "ct")
_CHUNK: Final = 2**20
_MOST_SAMPLES: Final = 2**24
_CASE_SAMPLES: Final = 2**16


def check_normalize(normalize: Any, allowed: Sequence[str] = NORMALIZE) -> None:
    """Refuse what is no name of a normalization, or no list of them.

    Raises:
        ValueError: With the nearest right name.
    """
    for name in [normalize] if isinstance(normalize, str) else list(normalize) or [None]:
        if name not in allowed:
            hint = did_you_mean(str(name), allowed)
            raise ValueError(f"normalize is {name!r}; allowed are {', '.join(allowed)}{hint}")


def per_channel(normalize: str | Sequence[str], channels: int) -> list[str]:
    """One name a channel.

    Raises:
        ValueError: A list whose length is not the number of channels.

    Example:
        >>> per_channel("case", 2), per_channel(["ct", "case"], 2)
        (['case', 'case'], ['ct', 'case'])
    """
    names = [normalize] * channels if isinstance(normalize, str) else list(normalize)
    if len(names) != channels:
        raise ValueError(f"normalize has {len(names)} entries, but the images have {channels} channels; give one each.")
    return names


def moments(image: NDArray[Any], normalize: str | Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    r"""What is subtracted from each channel and what it is divided by; 0 and 1 without normalization.

    `case`: mean and standard deviation. `zscore_nonzero`: those of the voxels that are not 0. `unit`: the minimum and
    the range, so that values lie in [0, 1]. `none` and `ct`: 0 and 1; the latter waits for the training set. A constant
    channel is divided by 1, so that it becomes 0 and not NaN.

    Args:
        image: (C, \*S).
        normalize: One name, or one a channel.

    Example:
        >>> mean, std = moments(np.array([[1, 3]], dtype=np.uint8), "case")
        >>> mean.tolist(), std.tolist()
        ([2.0], [1.0])
        >>> mean, std = moments(np.array([[0, 0, 1, 3]], dtype=np.uint8), "zscore_nonzero")
        >>> mean.tolist(), std.tolist()
        ([2.0], [1.0])
    """
    mean = np.zeros(len(image), dtype=np.float64)
    std = np.ones(len(image), dtype=np.float64)
    for channel, (values, name) in enumerate(zip(image, per_channel(normalize, len(image)), strict=True)):
        flat = values.ravel()
        if name == "zscore_nonzero":
            flat = flat[flat != 0]
        if name in {"none", "ct"} or not flat.size:
            continue
        if name == "unit":
            mean[channel], spread = float(flat.min()), float(flat.max()) - float(flat.min())
        else:
            mean[channel] = _mean(flat)
            spread = _spread(flat, mean[channel])
        std[channel] = spread if spread > 1e-8 else 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def foreground_sample(image: NDArray[Any], foreground: NDArray[np.bool_], cases: int) -> NDArray[np.float32] | None:
    r"""Equally many foreground voxels of a case, whatever its size, (C, n); None if it has no foreground.

    The voxels are evenly spread over the foreground in storage order, repeated where there are fewer than n.

    Args:
        image: (C, \*S).
        foreground: (\*S).
        cases: How many cases share the memory.
    """
    where = np.flatnonzero(foreground)
    if not where.size:
        return None
    number = max(1, min(_CASE_SAMPLES, _MOST_SAMPLES // max(1, cases)))
    chosen = where[np.arange(number, dtype=np.int64) * where.size // number]
    return np.stack([channel.ravel()[chosen] for channel in image]).astype(np.float32)


def ct_statistics(samples: Sequence[NDArray[np.float32]], channel: int) -> list[float]:
    """The 0.5 and 99.5 percentiles, the mean and the standard deviation of the samples of all training cases.

    Args:
        samples: Of `foreground_sample`, one a training case.
        channel: Which channel.

    Reference: Isensee et al. 2021 (nnU-Net), which clips CT to these percentiles, subtracts the mean and divides by the
    standard deviation of the same (unclipped) voxels.
    """
    values = np.concatenate([sample[channel] for sample in samples]).astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    spread = float(values.std())
    return [float(low), float(high), float(values.mean()), spread if spread > 1e-8 else 1.0]


def _mean(flat: NDArray[Any]) -> float:
    return sum(float(flat[i : i + _CHUNK].sum(dtype=np.float64)) for i in range(0, flat.size, _CHUNK)) / flat.size


def _spread(flat: NDArray[Any], mean: float) -> float:
    # In chunks, because a float64 copy of a whole volume is eight times an 8-bit one.
    total = 0.0
    for i in range(0, flat.size, _CHUNK):
        part = flat[i : i + _CHUNK].astype(np.float64) - mean
        total += float(part @ part)
    return float(np.sqrt(total / flat.size))
