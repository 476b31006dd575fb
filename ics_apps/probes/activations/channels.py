"""Which axis of an output holds the channels, and which channels have been silent or constant for long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ics_apps.probes.activations.columns import Key
from ics_apps.probes.selection import Layer

# A channel is dead when this many values read in a row were 0: active at < 3 % of positions with 95 % confidence.
STREAK: Final = 100
LONGEST_STREAK: Final = 127
EQUAL: Final = 1e-5  # relative difference up to which two values are one


class ChannelAxis:
    """Finds the channel axis of one output after the other, in forward order.

    Convolutions put channels at axis 1, linear and recurrent layers at the last; norms tell by the size of their
    weight. An activation or stream of the same shape has them where the layer before it had.

    Example:
        >>> axis = ChannelAxis()
        >>> axis.find(Layer(("fc",), "linear", nn.Linear(2, 8)), torch.zeros(4, 5, 8))
        2
        >>> axis.find(Layer(("act",), "activation", nn.ReLU()), torch.zeros(4, 5, 8))
        2

    Reference: ours.
    """

    def __init__(self) -> None:
        self._last: tuple[int, int, int] | None = None  # (ndim, channels, axis) of the last layer that was certain

    def find(self, layer: Layer, x: Tensor) -> int | None:
        """The channel axis of the output `x` of `layer`, None for fewer than two axes."""
        if x.ndim < 2:
            return None
        axis = _certain_axis(layer, x)
        if axis is None:
            if self._last is not None:
                ndim, channels, before = self._last
                if ndim == x.ndim and x.shape[before] == channels:
                    return before
            return 1
        self._last = (x.ndim, x.shape[axis], axis)
        return axis


class ChannelStreaks:
    """Counts, for each channel, for how many values read it has been silent, or has not varied.

    A channel is dead when the last 100 values read of it, or more, were 0. A sample cannot prove that: after k zeros in
    a row a channel is active at fewer than 3/k of positions with 95 % confidence (rule of three). It is constant when
    the last 100 comparisons, or more, of a value with another one of the same sample found them equal to 1e-5 and not
    0; from one sample to the next the level may differ, since weights move. A value that is not finite ends both. Of a
    channel of which each sample reads one value it is never said that it is constant.

    Example:
        >>> values, channel = np.tile(np.array([0, 3, 1, 3], np.float32), 101), np.tile([0, 1, 2, 1], 101)
        >>> values[2] = 2.0
        >>> dead, constant = ChannelStreaks().update([("relu", "", 0)], [values], [np.array(channel)], [3])
        >>> dead.tolist(), constant.tolist()
        ([1], [1])

    Reference: Hanley and Lippman-Hand 1983 (rule of three).
    """

    def __init__(self) -> None:
        # k for k comparisons that found no change, -k for k zeros: a channel cannot be in both streaks at once. One
        # byte a channel, so a count stops at 127.
        self._streaks: dict[Key, NDArray[np.int8]] = {}

    def update(
        self,
        keys: Sequence[Key],
        values: Sequence[NDArray[np.float32]],
        channel: Sequence[NDArray[np.integer[Any]]],
        channels: Sequence[int],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count one sample of each key in.

        Args:
            keys: layer, tag and call of each sample, no two alike.
            values: the values read, `(n,)` each.
            channel: the channel of each value, `(n,)` each.
            channels: how many channels there are; another number than before begins anew.

        Returns:
            The number of dead channels and of constant ones, `(keys,)` each.
        """
        if not keys:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        # All keys at once: of each there are few values, and calls cost more than they do.
        starts = np.cumsum([0, *channels])
        all_values = np.concatenate(values)
        place = np.concatenate([of_key + start for of_key, start in zip(channel, starts, strict=False)])
        total = int(starts[-1])
        seen = np.bincount(place, minlength=total)
        active = np.bincount(place, all_values != 0, total) > 0
        varied = _varied(all_values, place, total)
        streak = np.concatenate([self._streak_of(key, number) for key, number in zip(keys, channels, strict=True)])
        silent = np.minimum(streak, 0) - seen
        steady = np.where(varied, 0, np.maximum(streak, 0) + seen - 1)
        streak = np.where(seen == 0, streak, np.where(active, steady, silent)).clip(-LONGEST_STREAK, LONGEST_STREAK)
        kept = streak.astype(np.int8)
        bounds = starts.tolist()
        for key, start, end in zip(keys, bounds, bounds[1:], strict=False):
            self._streaks[key] = kept[start:end].copy()
        dead, constant = (
            np.add.reduceat(found.astype(np.int64), starts[:-1]) for found in (kept <= -STREAK, kept >= STREAK)
        )
        return dead, constant

    def _streak_of(self, key: Key, channels: int) -> NDArray[np.int64]:
        before = self._streaks.get(key)
        fresh = before is None or len(before) != channels
        return np.zeros(channels, np.int64) if fresh or before is None else before.astype(np.int64)

    def state_dict(self) -> list[tuple[str, str, int, Tensor]]:
        """Layer, tag, call and streaks of each: loads under `weights_only=True`."""
        return [(*key, torch.from_numpy(streaks.copy())) for key, streaks in self._streaks.items()]

    def load_state_dict(self, state: list[tuple[str, str, int, Tensor]]) -> None:
        """Take back what `state_dict` gave."""
        self._streaks = {(layer, tag, call): streaks.numpy().copy() for layer, tag, call, streaks in state}


def _certain_axis(layer: Layer, x: Tensor) -> int | None:
    module: Any = layer.module
    if layer.kind == "conv":
        return 1
    if layer.kind in ("linear", "recurrent") or type(module) in (nn.LayerNorm, nn.RMSNorm):
        return x.ndim - 1
    if layer.kind == "norm":
        weight = getattr(module, "weight", None)
        width = weight.numel() if isinstance(weight, Tensor) else 0
        return x.ndim - 1 if x.shape[-1] == width != x.shape[1] else 1
    return None


def _varied(values: NDArray[np.float32], channel: NDArray[np.integer[Any]], channels: int) -> NDArray[np.bool_]:
    """Which channels hold a value that is not equal to another one of them, or not finite."""
    reference = np.zeros(channels, np.float32)
    reference[channel] = values  # of several values the last one stays
    tolerance = np.abs(reference) * np.float32(EQUAL)
    with np.errstate(invalid="ignore", over="ignore"):
        equal = np.abs(values - reference[channel]) <= tolerance[channel]
    # An infinity is equal to nothing, since inf - inf is NaN.
    return np.bincount(channel, ~equal, channels) > 0
