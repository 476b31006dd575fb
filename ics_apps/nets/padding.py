"""Sizes that a net's strides do not divide."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pad_far_ends(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Repeat the border at the far end of each axis of space up to a multiple of its stride.

    At the far ends only: the grid of the poolings stays at the origin, so tiles that start at multiples of the strides
    agree with the whole.

    Args:
        x: (B, C, *S).
        strides: One number for each axis of S.

    Example:
        >>> import torch
        >>> pad_far_ends(torch.tensor([[[1.0, 2.0, 3.0]]]), [4])
        tensor([[[1., 2., 3., 3.]]])
    """
    missing = [-length % stride for length, stride in zip(x.shape[2:], strides, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [amount for length in reversed(missing) for amount in (0, length)], mode="replicate")
