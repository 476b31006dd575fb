"""Which axis of an output holds the channels, and which channels have been silent for long."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ics_apps.probes.drift import Key
from ics_apps.probes.sampling import Positions
from ics_apps.probes.taps import Layer

# A channel is dead when this many values read in a row were 0: active at < 3 % of positions with 95 % confidence.
DEAD_AFTER: Final = 100


class ChannelAxis:
    """Finds the channel axis of one output after the other, in forward order.

    Convolutions put channels at axis 1, linear layers at the last; norms tell by the size of their weight. An
    activation or stream of the same shape has them where the layer before it had.

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

    def forget(self) -> None:
        """Begin a new step."""
        self._last = None


class SilentChannels:
    """Counts, for each channel, the values read since it was last different from zero.

    A sample cannot prove that a channel is dead: after k zeros in a row it is active at fewer than 3/k of positions
    with 95 % confidence (rule of three). Here k is 100, gathered over as many samples as it takes.

    Example:
        >>> from ics_apps.probes.sampling import locate
        >>> x = torch.ones(8, 2, 16)
        >>> x[:, 1] = 0
        >>> SilentChannels().update(("relu", 0), x.flatten().numpy() != 0, locate(x, size=256, axis=1))
        1

    Reference: Hanley and Lippman-Hand 1983 (rule of three).
    """

    def __init__(self) -> None:
        self._silent: dict[Key, NDArray[np.int64]] = {}

    def update(self, key: Key, active: NDArray[np.bool_], where: Positions) -> int:
        """Count one sample in.

        Args:
            key: (layer, call) of the sample.
            active: which of the values read differ from 0, `(count,)`.
            where: where they lie.

        Returns:
            The number of dead channels.
        """
        channel = where.channel_index()
        seen = np.bincount(channel, minlength=where.channels)
        alive = np.bincount(channel[active], minlength=where.channels) > 0
        before = self._silent.get(key)
        if before is None or before.shape != seen.shape:
            before = np.zeros_like(seen)
        silent = np.where(alive, 0, before + seen)
        self._silent[key] = silent
        return int((silent >= DEAD_AFTER).sum())

    def state_dict(self) -> list[tuple[str, int, Tensor]]:
        """Layer, call and counts of each: loads under `weights_only=True`."""
        return [(layer, call, torch.from_numpy(counts.copy())) for (layer, call), counts in self._silent.items()]

    def load_state_dict(self, state: list[tuple[str, int, Tensor]]) -> None:
        """Take back what `state_dict` gave."""
        self._silent = {(layer, call): counts.numpy().copy() for layer, call, counts in state}


def _certain_axis(layer: Layer, x: Tensor) -> int | None:
    module: Any = layer.module
    if layer.kind == "conv":
        return 1
    if layer.kind == "linear" or type(module) in (nn.LayerNorm, nn.RMSNorm):
        return x.ndim - 1
    if layer.kind == "norm":
        weight = getattr(module, "weight", None)
        width = weight.numel() if isinstance(weight, Tensor) else 0
        return x.ndim - 1 if x.shape[-1] == width != x.shape[1] else 1
    return None
