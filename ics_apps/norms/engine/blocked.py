"""Formulas of several operations on a large tensor, by blocks that stay in the cache, at near a kernel's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ics_apps.norms.engine.axes import widened
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule

BLOCK = 2**18
"""Values of the input that `by_blocks` takes at a time: 1 MB in float32, so that a block's temporaries stay cached."""


def by_blocks(formula: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """The value of a formula, on a CPU taken some samples at a time, forward and backward.

    A norm written as five operations on a large tensor sends each of the five through main memory. Taken a block of
    samples at a time, only input and output go there, and only the input is kept for the backward pass, which takes the
    formula's gradient by the same blocks. Derivatives of higher order, compiled and exported graphs, `torch.func`,
    forward mode, other devices and small inputs get the formula as it stands.

    Args:
        formula: `(x, *parameters) -> y` from differentiable operations; y has the shape and dtype of x, and each sample
            of y depends on its own sample of x only.
        x: Input (B, ...).
        parameters: Tensors shared by all samples.

    Example:
        >>> x = torch.tensor([[3.0], [4.0]])
        >>> by_blocks(lambda x, weight: weight * x, x, torch.tensor([2.0])).flatten()
        tensor([6., 8.])

    Reference: ours.
    """
    if x.numel() <= BLOCK:
        return formula(x, *parameters)
    return by_rule(
        Rule(formula, partial(_value_by_blocks, formula), partial(_gradients_by_blocks, formula)), x, *parameters
    )


def sample_blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the first axis that cover it, each with about `BLOCK` values or with one sample.

    Example:
        >>> list(sample_blocks(torch.zeros(3, 2**17)))
        [slice(0, 2, None), slice(2, 4, None)]
    """
    step = max(1, BLOCK * len(x) // x.numel())
    return (slice(start, start + step) for start in range(0, len(x), step))


@dataclass(frozen=True)
class ChannelRows:
    """How tensors of one shape lie in memory, so that blocks of them are walked in the order of their values.

    Attributes:
        axis: The channel axis of the tensors as they come, 1 or last.
        at: The channel axis of their views of three axes: 1 for (B, C, P), 2 for (B, P, C), P all positions in a row.
    """

    axis: int
    at: int

    @classmethod
    def of(cls, x: Tensor, axis: int) -> ChannelRows:
        """The order of x: channels innermost (channels_last, tokens) or outside the positions.

        Example:
            >>> ChannelRows.of(torch.zeros(2, 4, 3, 3), 1).at, ChannelRows.of(torch.zeros(2, 9, 4), 2).at
            (1, 2)
        """
        last = x.movedim(axis, -1)
        innermost = last.stride(-1) == 1 and not x.movedim(axis, 1).is_contiguous()
        return cls(axis, 2 if last.is_contiguous() or innermost else 1)

    def dense(self, x: Tensor) -> Tensor:
        """The tensor in this order without gaps: itself if it is, else a copy."""
        inner = -1 if self.at == 2 else 1
        return x.movedim(self.axis, inner).contiguous().movedim(inner, self.axis)

    def flat(self, x: Tensor) -> Tensor:
        """The view of three axes of a dense tensor."""
        rows = x.movedim(self.axis, -1 if self.at == 2 else 1)
        return rows.view(len(x), -1, rows.shape[-1]) if self.at == 2 else rows.view(len(x), rows.shape[1], -1)

    def by_channel(self, vector: Tensor) -> Tensor:
        """A vector of one value per channel, to meet the views."""
        return vector.view(-1, 1) if self.at == 1 else vector

    def over_channels(self, values: Tensor, vector: Tensor) -> Tensor:
        """Sum over the channels of values (n, ...) times a vector (C,); (n, 1, P) or (n, P, 1)."""
        return vector.view(1, 1, -1) @ values if self.at == 1 else values @ vector.view(-1, 1)

    def over_positions(self, values: Tensor, row: Tensor) -> Tensor:
        """Sum over samples and positions of values (n, ...) times one factor a position, (n, 1, P) or (n, P, 1); (C,).

        As products of matrices: torch sums over the outer and the inner axis at once ten times slower.
        """
        by_sample = values @ row.transpose(1, 2) if self.at == 1 else row.transpose(1, 2) @ values
        return by_sample.flatten(1).sum(0)


def _value_by_blocks(
    formula: Callable[..., Tensor], x: Tensor, *parameters: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = torch.empty_like(x)
    for rows in sample_blocks(x):
        y[rows] = formula(x[rows], *parameters)
    return y, ()


def _gradients_by_blocks(
    formula: Callable[..., Tensor], grad: Tensor, inputs: tuple[Tensor, ...], _: tuple[Tensor, ...], needed: Wanted
) -> Gradients:
    x, *parameters = inputs
    # In float32 at least: the blocks' shares of a gradient are added up.
    leaves = [widened(p.detach()).requires_grad_(need) for p, need in zip(parameters, needed[1:], strict=True)]
    grad_x = torch.empty_like(x) if needed[0] else None
    for rows in sample_blocks(x):
        block = x[rows].detach().requires_grad_(needed[0])
        with torch.enable_grad():
            y = formula(block, *leaves)
        torch.autograd.backward(y, grad[rows])
        if grad_x is not None and block.grad is not None:
            grad_x[rows] = block.grad
    sums = [leaf.grad for leaf in leaves]
    return grad_x, *(s if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))
