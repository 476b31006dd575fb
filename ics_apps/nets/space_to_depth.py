"""Trade resolution for channels and back, in any number of space axes. No parameters, no statistics."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Move each block of factor^dim positions into the channels: (B, C, *rS) -> (B, C r^dim, *S).

    Args:
        x: Tensor whose sizes in space are multiples of `factor`.
        factor: r, at least 1.

    Example:
        >>> import torch
        >>> space_to_depth(torch.arange(4.0).reshape(1, 1, 4), 2)
        tensor([[[0., 2.],
                 [1., 3.]]])

    Reference: Shi 2016 (1609.05158), of which this is the inverse; in 2-D `torch.nn.functional.pixel_unshuffle`.
    """
    dim = x.dim() - 2
    if dim == 2:
        return F.pixel_unshuffle(x, factor)
    batch, channels, *sizes = x.shape
    blocks = x.reshape(batch, channels, *(part for size in sizes for part in (size // factor, factor)))
    coarse, inside = range(2, 2 + 2 * dim, 2), range(3, 3 + 2 * dim, 2)
    moved = blocks.permute(0, 1, *inside, *coarse)
    return moved.reshape(batch, channels * factor**dim, *(size // factor for size in sizes))


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """Undo `space_to_depth`: (B, C r^dim, *S) -> (B, C, *rS).

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3, 4, 6, 8)
        >>> torch.equal(depth_to_space(space_to_depth(x, 2), 2), x)
        True

    Reference: Shi 2016 (1609.05158); in 2-D `torch.nn.functional.pixel_shuffle`.
    """
    dim = x.dim() - 2
    if dim == 2:
        return F.pixel_shuffle(x, factor)
    batch, channels, *sizes = x.shape
    blocks = x.reshape(batch, channels // factor**dim, *([factor] * dim), *sizes)
    order = [axis for position in range(dim) for axis in (2 + dim + position, 2 + position)]
    moved = blocks.permute(0, 1, *order)
    return moved.reshape(batch, channels // factor**dim, *(size * factor for size in sizes))
