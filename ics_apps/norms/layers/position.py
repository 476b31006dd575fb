"""Layers that divide by the size of the channel vector at each position. Their names live in the catalog."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import channel_axis, widened
from ics_apps.norms.engine.blocked import ChannelRows, sample_blocks
from ics_apps.norms.engine.own_gradient import Gradients, Rule, by_rule
from ics_apps.norms.registry import Dim


class _PerPosition(nn.Module):
    """y = weight * x * gain(sum_C x^2) at each position; weight of shape (C,) or (1,), or none."""

    axis: int

    @abstractmethod
    def gain(self, square: Tensor) -> Tensor:
        """The factor of a channel vector from its sum of squares."""

    @abstractmethod
    def share(self, square: Tensor) -> Tensor | float:
        """What the gradient of the gain by x carries beside -gain^3 * x."""

    def scaled(self, x: Tensor, *weight: Tensor) -> Tensor:
        """The layer's value."""
        return by_rule(Rule(self._formula, self._value, self._gradients), x, *weight)

    def _formula(self, x: Tensor, *weight: Tensor) -> Tensor:
        values = widened(x)
        y = values * self.gain(values.square().sum(self.axis, keepdim=True))
        for vector in weight:
            y = y * vector.view(-1, *[1] * (x.dim() - 1 - self.axis))
        return y.to(x.dtype)

    def _value(self, x: Tensor, *weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = ChannelRows.of(x, self.axis)
        x = rows.dense(x)
        y = torch.empty_like(x)
        values, written, squares = rows.flat(x), rows.flat(y), []
        for block in sample_blocks(x):
            part = widened(values[block])
            scratch = part * part
            squares.append(scratch.sum(rows.at, keepdim=True))
            gain = self.gain(squares[-1])
            if weight and weight[0].numel() > 1:
                torch.mul(part, gain, out=scratch)
                part, gain = scratch, rows.by_channel(weight[0])
            elif weight:
                gain = gain * weight[0]
            written[block] = torch.mul(part, gain, out=scratch)
        return y, (torch.cat(squares),)

    def _gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: tuple[bool, ...]
    ) -> Gradients:
        # With s = sum_C g w x: dx = g w gain - x s gain^3 share, dw = sum of g x gain.
        rows = ChannelRows.of(inputs[0], self.axis)
        x, gradient = rows.dense(inputs[0]), rows.dense(gradient)
        weight = inputs[1].to(kept[0].dtype) if len(inputs) > 1 else kept[0].new_ones(1)
        grad_x, grad_weight = torch.empty_like(x) if wanted[0] else None, torch.zeros_like(weight)
        flat_x, flat_gradient = rows.flat(x), rows.flat(gradient)
        for block in sample_blocks(x):
            values, upstream, square = widened(flat_x[block]), widened(flat_gradient[block]), kept[0][block]
            gain, scratch = self.gain(square), values * upstream
            by_channel = weight.numel() > 1
            total = rows.over_channels(scratch, weight) if by_channel else scratch.sum(rows.at, keepdim=True)
            if wanted[-1] and len(inputs) > 1:
                grad_weight += rows.over_positions(scratch, gain) if by_channel else (total * gain).sum()
            if grad_x is None:
                continue
            # In this order, since the third power alone may overflow.
            pull = total * gain * gain * gain * self.share(square)
            if by_channel:
                torch.mul(upstream, rows.by_channel(weight), out=scratch).mul_(gain)
            else:
                pull = pull * weight
                torch.mul(upstream, gain * weight, out=scratch)
            rows.flat(grad_x)[block] = scratch.addcmul_(values, pull, value=-1)
        return (
            grad_x,
            *(grad_weight.to(p.dtype) if want else None for p, want in zip(inputs[1:], wanted[1:], strict=True)),
        )


class ScaleNorm(_PerPosition):
    """y = weight * x / max(||x||_2, eps) at each position, with one scalar weight of shape (1,), at first sqrt(C)."""

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.axis = channel_axis(dim)
        self.eps = eps
        self.weight = nn.Parameter(torch.tensor([math.sqrt(num_features)]))

    def forward(self, x: Tensor) -> Tensor:
        """Give the channel vector of each position the length `weight`."""
        return self.scaled(x, self.weight)

    def gain(self, square: Tensor) -> Tensor:
        """1 / max(||x||_2, eps)."""
        # The bound on the square, not on the root: at x = 0 the root has no derivative.
        return square.clamp_min(self.eps**2).rsqrt()

    def share(self, square: Tensor) -> Tensor | float:
        """0 below eps, where the length does not count."""
        return (square >= self.eps**2).to(square.dtype)

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{self.num_features}, eps={self.eps}"


class PixelNorm(_PerPosition):
    """y = x / sqrt(mean_C x^2 + eps) at each position; no parameters."""

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.axis = channel_axis(dim)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Give the channel vector of each position the root mean square 1."""
        return self.scaled(x)

    def gain(self, square: Tensor) -> Tensor:
        """1 / sqrt(mean_C x^2 + eps)."""
        return (square / self.num_features + self.eps).rsqrt()

    def share(self, square: Tensor) -> Tensor | float:
        """The share of a channel in the mean."""
        return 1 / self.num_features

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{self.num_features}, eps={self.eps}"


class RMSNorm(_PerPosition, nn.RMSNorm):
    """y = weight * x / sqrt(mean_C x^2 + eps) for each sample, token or position; weight of shape (C,), or None.

    An `eps` of None is the machine epsilon of the precision that the mean is taken in: float32 for halves.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float | None, affine: bool) -> None:
        nn.RMSNorm.__init__(self, num_features, eps=eps, elementwise_affine=affine)
        self.axis = channel_axis(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position."""
        return self.scaled(x) if self.weight is None else self.scaled(x, self.weight)

    def gain(self, square: Tensor) -> Tensor:
        """1 / sqrt(mean_C x^2 + eps)."""
        eps = torch.finfo(square.dtype).eps if self.eps is None else self.eps
        return (square / self.normalized_shape[0] + eps).rsqrt()

    def share(self, square: Tensor) -> Tensor | float:
        """The share of a channel in the mean."""
        return 1 / self.normalized_shape[0]
