"""Layers without statistics: each value is mapped by itself. Their names live in `catalog.elementwise`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import widened
from ics_apps.norms.engine.blocked import sample_blocks
from ics_apps.norms.engine.moments import channel_sums, dense_columns
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.engine.scaling import broadcast, scaled
from ics_apps.norms.registry import Dim


class Affine(nn.Module):
    """y = weight * x + bias; weight and bias of shape (C,)."""

    def __init__(self, num_features: int, dim: Dim) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each value."""
        return scaled(x, self.dim, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.num_features}"


class DynamicTanh(Affine):
    """y = weight * tanh(alpha * x) + bias with a scalar alpha of shape (1,); weight and bias of shape (C,)."""

    def __init__(self, num_features: int, dim: Dim, alpha: float) -> None:
        super().__init__(num_features, dim)
        self.alpha = nn.Parameter(torch.tensor([alpha]))

    def forward(self, x: Tensor) -> Tensor:
        """Squash, scale and shift each value."""
        no_shift = torch.zeros_like(self.alpha)
        return by_rule(_squash_rule(torch.tanh, self.dim), x, self.weight, self.bias, self.alpha, no_shift)


class DynamicErf(Affine):
    """y = weight * erf(alpha * x + shift) + bias, alpha and shift scalars of shape (1,); weight and bias (C,)."""

    def __init__(self, num_features: int, dim: Dim, alpha: float, shift: float) -> None:
        super().__init__(num_features, dim)
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.shift = nn.Parameter(torch.tensor([shift]))

    def forward(self, x: Tensor) -> Tensor:
        """Squash, scale and shift each value."""
        return by_rule(_squash_rule(torch.erf, self.dim), x, self.weight, self.bias, self.alpha, self.shift)


Squash: TypeAlias = Callable[[Tensor], Tensor]


def _squash_rule(squash: Squash, dim: Dim) -> Rule:
    """Rule of y = weight * squash(alpha * x + shift) + bias."""
    return Rule(partial(_squashed, squash, dim), partial(_squashed_fast, squash, dim), partial(_slopes, squash, dim))


def _squashed(
    squash: Squash, dim: Dim, x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, shift: Tensor
) -> Tensor:
    squashed = squash(widened(x) * alpha + shift)
    return (squashed * broadcast(weight, dim) + broadcast(bias, dim)).to(x.dtype)


def _squashed_fast(
    squash: Squash, dim: Dim, x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, shift: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    y, outer = (torch.empty_like(x, dtype=widened(x).dtype) for _ in range(2))
    for rows in sample_blocks(x):
        inner = torch.mul(widened(x[rows]), alpha, out=outer[rows]).add_(shift)
        squash(inner, out=inner)  # type: ignore[call-arg]
        torch.mul(inner, broadcast(weight, dim), out=y[rows]).add_(broadcast(bias, dim))
    return y.to(x.dtype), (outer,)


def _slopes(
    squash: Squash, dim: Dim, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: Wanted
) -> Gradients:
    x, weight, _bias, alpha, shift = inputs
    dx = torch.empty_like(x, dtype=widened(x).dtype)
    by_weight, by_bias, by_alpha, by_shift = [], [], [], []
    for rows in sample_blocks(x):
        values, g = widened(x[rows]), widened(gradient[rows])
        outer = kept[0][rows]
        dot, total = channel_sums(dense_columns(outer, dim), dense_columns(g, dim))
        by_weight.append(dot.sum(0))
        by_bias.append(total.sum(0))
        slope = g * broadcast(weight, dim)
        if squash is torch.tanh:
            slope = torch.ops.aten.tanh_backward(slope, outer)
        else:
            bell = (values * alpha).add_(shift).square_().neg_().exp_()
            slope.mul_(bell).mul_(2 / math.sqrt(math.pi))
        by_alpha.append(torch.dot(slope.flatten(), values.flatten()))
        by_shift.append(torch.sum(slope))
        torch.mul(slope, alpha, out=dx[rows])
    sums = [torch.stack(parts).sum(0) for parts in (by_weight, by_bias, by_alpha, by_shift)]
    parameters = [s.view_as(p).to(p.dtype) for s, p in zip(sums, inputs[1:], strict=True)]
    return tuple(d if want else None for d, want in zip([dx.to(x.dtype), *parameters], wanted, strict=True))
