"""Moments of values that are spread over the ranks of the default process group, merged and differentiable.

Here are the collective operations, in any precision and on any backend that gathers (gloo on CPUs, NCCL). Where a layer
calls them, and what it does in a single process, is the layer's matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def in_group() -> bool:
    """Whether several processes run together: a default process group of more than one rank exists.

    Example:
        >>> in_group()
        False
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of every rank's `x`, on every rank; x itself in a single process.

    y = sum_r x_r, hence dL/dx = sum_r dL_r/dy: the gradient is that of the sum of all ranks' losses. It can be
    differentiated any number of times, but every rank has to run the backward pass as often, or the others wait.

    Args:
        x: Of one shape and dtype on all ranks.

    Example:
        >>> all_reduce_sum(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return _AllReduceSum.apply(x) if in_group() else x


def all_gather_stack(x: Tensor) -> Tensor:
    """Every rank's `x`, stacked along a new first axis in the order of the ranks; differentiable as `all_reduce_sum`.

    Args:
        x: Of one shape and dtype on all ranks.

    Example:
        >>> all_gather_stack(torch.tensor([1.0, 2.0]))
        tensor([[1., 2.]])
    """
    return _AllGather.apply(x) if in_group() else x.unsqueeze(0)


def merged_moments(mean: Tensor, var: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the values of all ranks together, from each rank's own; one collective, differentiable.

    n = sum_r n_r, mean = sum_r n_r mean_r / n, var = sum_r n_r (var_r + (mean_r - mean)^2) / n. No difference of large
    squares is taken, so nothing cancels. Ranks may hold different numbers of values, or none: what a rank with
    n_r = 0 gives as its mean and variance (NaN, say) is not looked at.

    Args:
        mean: Mean of this rank's values, of any shape (one per channel, say), the same on all ranks.
        var: Their BIASED variance, of the same shape.
        count: n_r, one number for all entries, or a tensor of the shape of `mean`. It takes the dtype of `mean`, so in
            float32 it is exact up to 2^24 values and off by a relative 6e-8 beyond.

    Returns:
        The joint mean, the joint BIASED variance and n, all of the shape of `mean` and the same on every rank. Where no
        rank has a value (n = 0) mean and variance are 0.

    Example:
        >>> mean, var, count = merged_moments(torch.tensor([2.0]), torch.tensor([1.0]), 3)
        >>> mean, var, count
        (tensor([2.]), tensor([1.]), tensor([3.]))

    Reference: Chan, Golub & LeVeque 1979, for more than two parts.
    """
    counts = torch.as_tensor(count, dtype=mean.dtype, device=mean.device).expand_as(mean)
    filled = counts > 0
    # Both ways round: the gradient of a masked NaN would be NaN again.
    own = torch.stack([counts, mean.where(filled, 0), var.where(filled, 0)])
    if not in_group():
        return own[1], own[2], own[0]
    n, means, variances = all_gather_stack(own).unbind(1)
    total = n.sum(0)
    share = n / total.clamp(min=1)
    joint = (share * means).sum(0)
    return joint, (share * (variances + (means - joint).square())).sum(0), total


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total: Tensor = _AllReduceSum.apply(gradient)
        return total


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        # Gloo has no reduce-scatter, which would send each rank its own row only.
        total: Tensor = _AllReduceSum.apply(gradient)
        return total[dist.get_rank()]
