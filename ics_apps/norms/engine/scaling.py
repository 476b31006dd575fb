"""y = x * scale + shift with one pair a channel, a sample's channel, or the whole tensor: fast, to any order."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ics_apps.norms.engine.axes import widened
from ics_apps.norms.engine.moments import channel_sums, dense_columns
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.registry import Dim


def scaled(x: Tensor, dim: Dim, scale: Tensor, shift: Tensor) -> Tensor:
    """Multiply and add per-channel values.

    Args:
        x: Input of the shape that `dim` tells.
        dim: As in `make_norm`.
        scale: (C,), (B, C) or (1,).
        shift: As `scale`.

    Returns:
        In the shape, type and memory format of x.

    Example:
        >>> import torch
        >>> scaled(torch.ones(2, 3, 4, 4), 2, torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))[0, :, 0, 0]
        tensor([1., 2., 3.])
    """
    if dim == 0:
        return _formula(0, x, scale, shift)
    rule = Rule(partial(_formula, dim), partial(_forward, dim), partial(_backward, dim))
    return by_rule(rule, x, scale, shift)


def broadcast(table: Tensor, dim: Dim) -> Tensor:
    """A table (C,), (B, C) or (1,) in the shape that meets the input."""
    rows = table if table.dim() == 2 else table.unsqueeze(0)
    return rows.unsqueeze(1) if dim == "tokens" else rows.reshape(*rows.shape, *(1,) * int(dim))


def _formula(dim: Dim, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # Two operations: torch's loop for addcmul is not vectorised where both vectors are broadcast along a row.
    return (widened(x) * broadcast(scale, dim) + broadcast(shift, dim)).to(x.dtype)


def _forward(dim: Dim, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = (widened(x) * broadcast(scale, dim)).add_(broadcast(shift, dim))
    return y.to(x.dtype), ()


def _backward(
    dim: Dim, gradient: Tensor, inputs: tuple[Tensor, ...], _: tuple[Tensor, ...], wanted: Wanted
) -> Gradients:
    x, scale, shift = inputs
    g = widened(gradient)
    dx = (g * broadcast(scale, dim)).to(x.dtype) if wanted[0] else None
    if not (wanted[1] or wanted[2]):
        return dx, None, None
    dot, total = channel_sums(dense_columns(x, dim), dense_columns(g, dim))
    return dx, _summed(dot, scale) if wanted[1] else None, _summed(total, shift) if wanted[2] else None


def _summed(table: Tensor, like: Tensor) -> Tensor:
    """A table (B, C) summed to the shape of a scale or shift."""
    return table.double().sum_to_size(like.shape if like.dim() == 2 else (1, *like.shape)).view_as(like).to(like.dtype)
