"""The EvoNorms, which normalise and activate in one. Their names live in `catalog.sample` and `catalog.mixed`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import widened
from ics_apps.norms.engine.blocked import sample_blocks
from ics_apps.norms.engine.moments import channel_moments, channel_sums, dense_columns, pooled, pooled_groups
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.engine.scaling import broadcast, scaled
from ics_apps.norms.layers.base import refuse_single_values
from ics_apps.norms.recompute import in_recompute
from ics_apps.norms.registry import Dim


class EvoNormS0(nn.Module):
    """y = x * sigmoid(slope * x) / sqrt(var_group + eps) * weight + bias; contains its activation."""

    def __init__(self, num_features: int, dim: Dim, eps: float, num_groups: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_groups = num_groups
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.slope = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Activate and normalise."""
        values = widened(x)
        _, var = pooled_groups(*channel_moments(values, self.dim), self.num_groups)
        swish = by_rule(Rule(self._formula, self._swish, self._slopes), values, self.slope)
        scale = torch.rsqrt(var + self.eps) * self.weight
        return scaled(swish, self.dim, scale, self.bias).to(x.dtype)

    def _formula(self, x: Tensor, slope: Tensor) -> Tensor:
        return x * torch.sigmoid(x * broadcast(slope, self.dim))

    def _swish(self, x: Tensor, slope: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, gate = torch.empty_like(x), torch.empty_like(x)
        for rows in sample_blocks(x):
            torch.mul(x[rows], broadcast(slope, self.dim), out=gate[rows]).sigmoid_()
            torch.mul(x[rows], gate[rows], out=y[rows])
        return y, (gate,)

    def _slopes(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: Wanted
    ) -> Gradients:
        x, slope = inputs
        dx, by_slope = torch.empty_like(x), []
        for rows in sample_blocks(x):
            values, g, gate = x[rows], gradient[rows], kept[0][rows]
            # With u = x s, s the gate: du/dslope = u (x - u) and du/dx = s + slope * u * (1 - s).
            u = values * gate
            dot, _ = channel_sums(dense_columns(u, self.dim), dense_columns((values - u).mul_(g), self.dim))
            by_slope.append(dot.sum(0))
            u.addcmul_(u, gate, value=-1).mul_(broadcast(slope, self.dim)).add_(gate)
            torch.mul(u, g, out=dx[rows])
        found = (dx, torch.stack(by_slope).sum(0).to(slope.dtype))
        return tuple(d if want else None for d, want in zip(found, wanted, strict=True))

    def extra_repr(self) -> str:
        """Groups, channels and eps."""
        return f"{self.num_groups}, {self.num_features}, eps={self.eps}"


class EvoNormB0(nn.Module):
    """y = x / max(sqrt(var_batch + eps), slope * x + sqrt(var_sample + eps)) * weight + bias."""

    running_var: Tensor
    num_batches_tracked: Tensor
    kinked = True

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.slope = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate; in training from the batch's variance, which also moves the running one.

        Raises:
            ValueError: In training, one value per channel.
        """
        values = widened(x)
        mean, var = channel_moments(values, self.dim)
        floor = (self._batch_var(mean, var, x) + self.eps).sqrt()
        own = (var + self.eps).sqrt()
        rule = Rule(self._formula, self._divided, self._slopes)
        return by_rule(rule, values, own, floor, self.slope, self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Channels, eps and momentum."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def _batch_var(self, mean: Tensor, var: Tensor, x: Tensor) -> Tensor:
        if not self.training:
            return self.running_var
        refuse_single_values(x, self.num_features)
        batch_var = pooled(mean, var, 0)[1][0]
        if not in_recompute():
            count = x.numel() // self.num_features
            with torch.no_grad():
                unbiased = batch_var * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked += 1
        return batch_var

    def _formula(self, x: Tensor, own: Tensor, floor: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        divisor = self._divisor(x, broadcast(own, self.dim), floor, slope)
        return x / divisor * broadcast(weight, self.dim) + broadcast(bias, self.dim)

    def _divisor(self, x: Tensor, own: Tensor, floor: Tensor, slope: Tensor) -> Tensor:
        return torch.maximum(x * broadcast(slope, self.dim) + own, broadcast(floor, self.dim))

    def _divided(
        self, x: Tensor, own: Tensor, floor: Tensor, slope: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = torch.empty_like(x)
        for rows in sample_blocks(x):
            divisor = self._divisor(x[rows], broadcast(own[rows], self.dim), floor, slope)
            torch.div(x[rows], divisor, out=y[rows]).mul_(broadcast(weight, self.dim)).add_(broadcast(bias, self.dim))
        return y, ()

    def _slopes(self, gradient: Tensor, inputs: tuple[Tensor, ...], _: tuple[Tensor, ...], wanted: Wanted) -> Gradients:
        x, own, floor, slope, weight, _bias = inputs
        dx, tables = torch.empty_like(x), []
        for rows in sample_blocks(x):
            values, g = x[rows], gradient[rows]
            inner = (values * broadcast(slope, self.dim)).add_(broadcast(own[rows], self.dim))
            divisor = torch.maximum(inner, broadcast(floor, self.dim))
            quotient = values / divisor
            dot, total = channel_sums(dense_columns(quotient, self.dim), dense_columns(g, self.dim))
            by_quotient = (g * broadcast(weight, self.dim)).div_(divisor)
            by_divisor = quotient.mul_(by_quotient).neg_()
            whole = dense_columns(by_divisor, self.dim).sum(2)
            # Where the maximum is the inner value; at once with the product, which a mask of booleans would triple.
            inner -= broadcast(floor, self.dim)
            by_divisor = torch.ops.aten.threshold_backward(by_divisor, inner, 0)
            by_inner, above = channel_sums(dense_columns(values, self.dim), dense_columns(by_divisor, self.dim))
            dx[rows] = by_divisor.mul_(broadcast(slope, self.dim)).add_(by_quotient)
            tables.append((above, whole - above, by_inner, dot, total))
        by_own, *by_channel = (torch.cat(parts) for parts in zip(*tables, strict=True))
        found = (dx, by_own, *(table.sum(0) for table in by_channel))
        typed = (d.to(tensor.dtype) for d, tensor in zip(found, inputs, strict=True))
        return tuple(d if want else None for d, want in zip(typed, wanted, strict=True))
