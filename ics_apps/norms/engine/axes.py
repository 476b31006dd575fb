"""Where channels and positions lie in an input of a given `dim`, and in what precision statistics are taken."""

from __future__ import annotations

import torch
from torch import Tensor

from ics_apps.norms.registry import Dim


def channel_axis(dim: Dim) -> int:
    """Index of the channel axis: last for tokens (B, L, C), else 1."""
    return 2 if dim == "tokens" else 1


def space_axes(dim: Dim) -> tuple[int, ...]:
    """Indices of the position axes, counting tokens as positions.

    Example:
        >>> space_axes(3), space_axes("tokens"), space_axes(0)
        ((2, 3, 4), (1,), ())
    """
    return (1,) if isinstance(dim, str) else tuple(range(2, 2 + dim))


def channel_shape(channels: int, dim: Dim) -> tuple[int, ...]:
    """Shape in which a vector of one value per channel meets the input without its batch axis.

    Example:
        >>> channel_shape(8, 2), channel_shape(8, "tokens")
        ((8, 1, 1), (8,))
    """
    return (channels,) if isinstance(dim, str) else (channels,) + (1,) * dim


def widened(x: Tensor) -> Tensor:
    """The input in float32 if it comes in half or bfloat16, else as it is: sums of many halves lose their digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
