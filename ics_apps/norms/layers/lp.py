"""Batch norm by absolute deviations. Its name lives in `catalog.batch_like`."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import space_axes, widened
from ics_apps.norms.engine.blocked import sample_blocks
from ics_apps.norms.engine.moments import channel_sums, dense_columns
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.engine.scaling import broadcast, scaled
from ics_apps.norms.layers.base import affine_or_identity, refuse_single_values
from ics_apps.norms.recompute import in_recompute
from ics_apps.norms.registry import Dim

L1_FACTOR = math.sqrt(math.pi / 2)
"""Makes the mean absolute deviation of Gaussian values their standard deviation."""


class LpBatchNorm(nn.Module):
    """y = (x - mean) / spread * weight + bias; the spread is an absolute deviation scaled for Gaussian values.

    `running_scale` averages the spread itself, eps included.
    """

    running_mean: Tensor
    running_scale: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float, affine: bool, p: str) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        self.p = p
        self.kinked = p != "l2"
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_scale", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training from the batch, which also moves the running values.

        Raises:
            ValueError: In training, one value per channel.
        """
        weight, bias = affine_or_identity(self.weight, self.bias, self.running_mean)
        if not self.training:
            inverse = weight / self.running_scale
            y = scaled(widened(x) - broadcast(self.running_mean, self.dim), self.dim, inverse, bias)
            return y.to(x.dtype)
        refuse_single_values(x, self.num_features)
        seen: list[tuple[Tensor, Tensor]] = []
        if self.p == "l1":
            rule = Rule(partial(self._formula, seen), partial(self._fast_l1, seen), self._l1_gradients)
            y = by_rule(rule, x, weight, bias)
        else:
            y = self._formula(seen, x, weight, bias)
        if not in_recompute():
            self._observe(*seen[0])
        return y

    def extra_repr(self) -> str:
        """Channels, p, eps and momentum."""
        return f"{self.num_features}, p={self.p}, eps={self.eps}, momentum={self.momentum}"

    def _formula(self, seen: list[tuple[Tensor, Tensor]], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values, axes = widened(x), (0, *space_axes(self.dim))
        mean = values.mean(axes, keepdim=True)
        centred = values - mean
        # Once more, for what the mean lost by being rounded.
        centred = centred - centred.mean(axes, keepdim=True)
        spread = self._spread(centred, axes)
        seen.append((mean.detach(), spread.detach()))
        return (centred / spread * broadcast(weight, self.dim) + broadcast(bias, self.dim)).to(x.dtype)

    def _spread(self, centred: Tensor, axes: tuple[int, ...]) -> Tensor:
        if self.p == "l2":
            return (centred.square().mean(axes, keepdim=True) + self.eps).sqrt()
        if self.p == "l1":
            return centred.abs().mean(axes, keepdim=True) * L1_FACTOR + self.eps
        count = centred.numel() // self.num_features
        factor = (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(count))
        return centred.abs().amax(axes, keepdim=True) * factor + self.eps

    def _fast_l1(
        self, seen: list[tuple[Tensor, Tensor]], x: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        means = torch.cat([dense_columns(x[rows], self.dim).mean(2) for rows in sample_blocks(x)])
        near = means.mean(0)
        y = torch.empty_like(x, dtype=widened(x).dtype)
        rest, deviation = [], []
        for rows in sample_blocks(x):
            block = torch.sub(x[rows], broadcast(near, self.dim), out=y[rows])
            rest.append(dense_columns(block, self.dim).mean(2).double())
        rest_mean = torch.cat(rest).mean(0)
        y -= broadcast(rest_mean.to(y.dtype), self.dim)
        for rows in sample_blocks(x):
            deviation.append(torch.linalg.vector_norm(dense_columns(y[rows], self.dim), 1, 2).double())
        count = x.numel() // self.num_features
        spread = torch.cat(deviation).sum(0) / count * L1_FACTOR + self.eps
        mean = near + rest_mean
        seen.append((mean, spread))
        scale = (weight / spread).to(y.dtype)
        y.mul_(broadcast(scale, self.dim)).add_(broadcast(bias, self.dim))
        return y.to(x.dtype), (mean, spread)

    def _l1_gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: Wanted
    ) -> Gradients:
        x, weight, _bias = inputs
        mean, spread = kept
        count = x.numel() // self.num_features
        near = mean.to(widened(x).dtype)
        sums = []
        for rows in sample_blocks(x):
            centred = dense_columns(x[rows] - broadcast(near, self.dim), self.dim)
            signs = centred.sign().sum(2)
            sums.append((*channel_sums(centred, dense_columns(gradient[rows], self.dim)), signs))
        dot, total, signs = (torch.cat(parts).double().sum(0) for parts in zip(*sums, strict=True))
        dot = dot - (mean - near) * total
        by_deviation = -dot * weight / spread.square() * (L1_FACTOR / count)
        scale = weight / spread
        constant = (total * scale + by_deviation * signs) / count
        tables = (broadcast(t.to(near.dtype), self.dim) for t in (scale, by_deviation, constant))
        scale_row, sign_row, constant_row = tables
        dx = torch.empty_like(x, dtype=widened(x).dtype)
        for rows in sample_blocks(x):
            signs_of_block = (widened(x[rows]) - broadcast(near, self.dim)).sign_().mul_(sign_row).sub_(constant_row)
            torch.addcmul(signs_of_block, widened(gradient[rows]), scale_row, out=dx[rows])
        found = (dx.to(x.dtype), (dot / spread).to(weight.dtype), total.to(weight.dtype))
        return tuple(d if want else None for d, want in zip(found, wanted, strict=True))

    @torch.no_grad()
    def _observe(self, mean: Tensor, spread: Tensor) -> None:
        self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
        self.running_scale.lerp_(spread.flatten().to(self.running_scale.dtype), self.momentum)
        self.num_batches_tracked += 1
