"""Histograms whose edges stay fixed over a whole run, so that those of two steps can be compared bin by bin.

Nothing is drawn here; quantiles and moments of the same samples are in `moments`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ics_apps.probes.activations.columns import BINS, Key

Float64 = NDArray[np.float64]

REACH: Final = 1000.0  # the outermost edges lie this many scales from the centre
MOST_VALUES: Final = 2**16 - 1  # what a uint16 can count
# Share of the centre below which a standard deviation counts as rounding.
FLOOR: Final = 1e-6
_STEPS: Final = np.sinh(np.linspace(-math.asinh(REACH), math.asinh(REACH), BINS + 1))


def edges(center: ArrayLike, scale: ArrayLike) -> Float64:
    """The edges of the bins: center + scale * sinh(t), t evenly spaced from -asinh(1000) to asinh(1000).

    Near the centre bins are 0.24 scales wide, far from it each is 1.27 times as wide as the one before.

    Args:
        center: `(R,)`.
        scale: `(R,)`, > 0.

    Returns:
        `(R, 65)`, ascending.

    Example:
        >>> row = edges([2.0], [0.5])[0]
        >>> len(row), float(row[0].round(6)), float(row[32]), float(row[-1].round(6))
        (65, -498.0, 2.0, 502.0)

    Reference: ours.
    """
    around = np.asarray(center, np.float64)[..., None]
    found: Float64 = around + np.asarray(scale, np.float64)[..., None] * _STEPS
    return found


class Histograms:
    """Counts samples into 64 bins, with two more for what lies outside, by edges that the first sample of a key sets.

    The centre is the first sample's median, the scale its standard deviation; if that is 0 or mere rounding, the scale
    is |center|, or 1 where that is 0 too. Both are rounded to float32, so that a table gives the very same edges back.
    A sample without a finite value sets no edges.

    Example:
        >>> found, center, scale = Histograms().count(
        ...     [("act", "", 0)], np.array([[-5000, 0, 0, 1, np.nan]], np.float32), [4], [0.0], [1.0]
        ... )
        >>> [(int(place), int(found[0, place])) for place in found[0].nonzero()[0]]
        [(0, 1), (33, 2), (36, 1)]

    Reference: ours.
    """

    def __init__(self) -> None:
        self._layout: dict[Key, tuple[float, float]] = {}  # centre and scale

    def count(
        self, keys: Sequence[Key], ordered: NDArray[np.float32], kept: ArrayLike, median: ArrayLike, std: ArrayLike
    ) -> tuple[NDArray[np.uint16], Float64, Float64]:
        """Count one sample of each key.

        A value on an edge counts as above it.

        Args:
            keys: layer, tag and call of each row.
            ordered: `(R, n)`, n <= 65,535, each row ascending, what is not finite at its end.
            kept: how many values of each row are finite, `(R,)`.
            median: of each row, `(R,)`.
            std: of each row, `(R,)`.

        Returns:
            Counts `(R, 66)`: below the first edge, in the 64 bins, from the last edge on, with the sum `kept`; centre
            and scale `(R,)`, NaN where no sample has set them.

        Raises:
            ValueError: n > 65,535.
        """
        if ordered.shape[1] > MOST_VALUES:
            raise ValueError(f"a row has {ordered.shape[1]} values; give at most {MOST_VALUES}, or a bin overflows.")
        number = np.asarray(kept, np.int64).tolist()
        both = zip(keys, number, np.asarray(median).tolist(), np.asarray(std).tolist(), strict=True)
        layout = np.array([self._layout_of(*row) for row in both], np.float64).reshape(-1, 2)
        marks = edges(layout[:, 0], layout[:, 1])
        # Values below each edge, between nothing and everything: their differences are the counts.
        below = np.zeros((len(number), BINS + 3), np.int64)
        for row, (values, at, end) in enumerate(zip(ordered, marks, number, strict=True)):
            if end:
                below[row, 1:-1] = values[:end].astype(np.float64).searchsorted(at)
                below[row, -1] = end
        return np.diff(below, axis=1).astype(np.uint16), layout[:, 0], layout[:, 1]

    def state_dict(self) -> dict[str, Any]:
        """Names and one float64 tensor `(keys, 2)`: loads under `weights_only=True`."""
        layout = np.array(list(self._layout.values()), np.float64).reshape(-1, 2)
        return {"keys": list(self._layout), "layout": torch.from_numpy(layout)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        rows = ((center, scale) for center, scale in state["layout"].tolist())
        self._layout = dict(zip(map(tuple, state["keys"]), rows, strict=True))

    def _layout_of(self, key: Key, kept: int, median: float, std: float) -> tuple[float, float]:
        known = self._layout.get(key)
        if known is not None:
            return known
        if kept == 0:
            return math.nan, math.nan
        center, scale = float(np.float32(median)), float(np.float32(std))
        if not FLOOR * abs(center) < scale < math.inf:
            scale = abs(center) or 1.0
        self._layout[key] = center, scale
        return center, scale
