"""How far a layer's sample has moved since the previous one and since the first, and the memory of both.

Distances between whole data sets are in `ics_apps.shift`; here are the two that fit in a few figures a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ics_apps.probes.activations.columns import Key
from ics_apps.probes.activations.moments import GRID

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Share of the range (and of the mean) below which a standard deviation counts as rounding.
FLOOR: Final = 1e-6
TINY: Final = 1e-30
_UNKNOWN: Final = np.full(GRID + 2, np.nan, np.float32)


def gaussian_kl(
    mean_p: ArrayLike, var_p: ArrayLike, mean_q: ArrayLike, var_q: ArrayLike, floor: ArrayLike = TINY
) -> Float64:
    """Symmetrised Kullback-Leibler divergence between two Gaussians with these moments.

    J = (KL(p|q) + KL(q|p)) / 2 = ((v_p + d^2) / v_q + (v_q + d^2) / v_p) / 4 - 1/2, d = mean_p - mean_q. Jeffreys'
    divergence is twice this. For outputs of a ReLU it is a moment gap only, since these are not Gaussian.

    Args:
        mean_p: means of p, any shape.
        var_p: variances of p, >= 0.
        mean_q: means of q.
        var_q: variances of q, >= 0.
        floor: smallest variance used, > 0.

    Returns:
        J, in nats, >= 0.

    Example:
        >>> float(gaussian_kl(0.0, 1.0, 2.0, 1.0))
        2.0
        >>> float(gaussian_kl(0.0, 1.0, 0.0, 4.0))
        0.5625

    Reference: Kullback and Leibler 1951; closed form for Gaussians.
    """
    v_p = np.maximum(np.asarray(var_p, np.float64), floor)
    v_q = np.maximum(np.asarray(var_q, np.float64), floor)
    squared = np.square(np.asarray(mean_p, np.float64) - np.asarray(mean_q, np.float64))
    divergence: Float64 = np.maximum(((v_p + squared) / v_q + (v_q + squared) / v_p) / 4 - 0.5, 0.0)
    return divergence


def wasserstein1(quantiles_p: ArrayLike, quantiles_q: ArrayLike) -> Float64:
    """Wasserstein-1 distance from quantiles at the same levels u_k = (k - 1/2) / K.

    W1 = integral over u of |F_p^-1(u) - F_q^-1(u)| ~ mean over k of |p_k - q_k|: exact for a shift.

    Args:
        quantiles_p: `(..., K)`.
        quantiles_q: `(..., K)`.

    Returns:
        The distance, in the units of the values, shape `(...)`.

    Example:
        >>> float(wasserstein1([0.0, 1.0, 2.0], [3.0, 4.0, 5.0]))
        3.0

    Reference: Vallender 1974 (the one-dimensional formula).
    """
    gap = np.abs(np.asarray(quantiles_p, np.float64) - np.asarray(quantiles_q, np.float64))
    distance: Float64 = np.asarray(gap.mean(axis=-1))
    return distance


class History:
    """The first and the previous sample of each key: 64 quantiles, mean and standard deviation, on the host.

    Two samples of 1,024 values from one and the same law are about 0.06 std apart in W1 and 1e-3 in J: that is the
    noise level, not drift.

    Example:
        >>> history = History()
        >>> grid, mean, std = np.arange(64.0)[None], np.array([31.5]), np.array([18.5])
        >>> first = history.advance([("norm", "", 0)], grid, mean, std)
        >>> second = history.advance([("norm", "", 0)], grid + 37.0, mean + 37.0, std)
        >>> bool(np.isnan(first["drift_kl"][0])), float(second["drift_w1"][0]), float(second["reference_mean"][0])
        (True, 2.0, 2.0)

    Reference: ours.
    """

    def __init__(self) -> None:
        self._previous: dict[Key, Float32] = {}
        self._first: dict[Key, Float32] = {}

    def advance(
        self, keys: Sequence[Key], grid: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]
    ) -> dict[str, Float64]:
        """Compare with the previous and the first sample of each key, then remember these ones.

        A sample with no finite value gives NaN and is not remembered.

        Args:
            keys: (layer, tag, call) of each row.
            grid: quantiles, `(R, 64)`.
            mean: `(R,)`.
            std: `(R,)`.

        Returns:
            `drift_kl` (symmetrised Gaussian KL), `drift_w1` and `drift_mean` (W1 and the gap of the means, divided by
            the standard deviation of the previous sample; NaN where that is 0 and the sample moved), and
            `reference_kl`, `reference_w1`, `reference_mean`, the same against the first sample: `(R,)` each, NaN for a
            first sample.
        """
        with np.errstate(over="ignore"):
            now = np.concatenate([grid, mean[:, None], std[:, None]], axis=1).astype(np.float32)
        distances = {}
        for name, memory in (("drift", self._previous), ("reference", self._first)):
            found = _distances(np.stack([memory.get(key, _UNKNOWN) for key in keys]) if len(keys) else now, now)
            distances.update({f"{name}_{kind}": value for kind, value in found.items()})
        for key, row, known in zip(keys, now, np.isfinite(now.sum(axis=1)).tolist(), strict=True):
            if known:
                self._previous[key] = row
                if key not in self._first:
                    self._first[key] = row.copy()
        return distances

    def state_dict(self) -> dict[str, Any]:
        """Names, tags, calls and two float32 tensors `(rows, 66)`: loads under `weights_only=True`."""
        keys = list(self._first)  # a key has both or none
        return {
            "keys": [list(key) for key in keys],
            "first": torch.from_numpy(_stacked(self._first, keys)),
            "previous": torch.from_numpy(_stacked(self._previous, keys)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        keys: list[Key] = [(layer, tag, call) for layer, tag, call in state["keys"]]
        self._first = dict(zip(keys, state["first"].numpy().copy(), strict=True))
        self._previous = dict(zip(keys, state["previous"].numpy().copy(), strict=True))


def _distances(earlier: Float32, later: Float32) -> dict[str, Float64]:
    before, now = earlier.astype(np.float64), later.astype(np.float64)
    mean_p, std_p, mean_q, std_q = before[:, GRID], before[:, GRID + 1], now[:, GRID], now[:, GRID + 1]
    size = np.max(np.abs(np.concatenate([before[:, : GRID + 1], now[:, : GRID + 1]], axis=1)), axis=1, initial=0.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        floor = np.square(FLOOR * np.nan_to_num(size)) + TINY
        unit = np.where(std_p > 0, std_p, np.nan)
        moved, shifted = wasserstein1(before[:, :GRID], now[:, :GRID]), np.abs(mean_q - mean_p)
        return {
            "kl": gaussian_kl(mean_p, np.square(std_p), mean_q, np.square(std_q), floor),
            "w1": np.where(moved == 0, 0.0, moved / unit),
            "mean": np.where(shifted == 0, 0.0, shifted / unit),
        }


def _stacked(memory: dict[Key, Float32], keys: Sequence[Key]) -> Float32:
    return np.stack([memory[key] for key in keys]) if keys else np.empty((0, GRID + 2), np.float32)
