"""Layers that mix statistics over the batch with statistics within a sample. Their names live in `catalog.mixed`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.axes import channel_axis, channel_shape, space_axes, widened
from ics_apps.norms.registry import Dim


class SwitchableNorm(nn.Module):
    """Learned mix of instance, layer and batch statistics.

    y = (x - sum_k w_k mu_k) / sqrt(sum_k w'_k v_k + eps) * weight + bias, w = softmax(mean_logits) and
    w' = softmax(var_logits), ordered (instance, layer, batch); features (dim 0) have no positions and mix the last two.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        kinds = 2 if dim == 0 else 3
        self.mean_logits = nn.Parameter(torch.zeros(kinds))
        self.var_logits = nn.Parameter(torch.zeros(kinds))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training from the batch's moments, which also update the running ones.

        Raises:
            ValueError: In training, one value per channel.
        """
        values, axes, channel = widened(x), space_axes(self.dim), channel_axis(self.dim)
        mean, var = (values, torch.zeros_like(values)) if not axes else _moments(values, axes)
        layer = _pooled(mean, var, channel)
        batch = self._batch_moments(mean, var, x)
        parts = [layer, batch] if not axes else [(mean, var), layer, batch]
        shape = channel_shape(self.num_features, self.dim)
        mixed_mean = _mix(self.mean_logits, [part[0] for part in parts])
        mixed_var = _mix(self.var_logits, [part[1] for part in parts])
        scale = torch.rsqrt(mixed_var + self.eps) * self.weight.view(shape)
        y = torch.addcmul(self.bias.view(shape), values - mixed_mean, scale)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Channels, eps and momentum, as torch prints them."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def _batch_moments(self, mean: Tensor, var: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = channel_shape(self.num_features, self.dim)
        if not self.training:
            return self.running_mean.view(shape), self.running_var.view(shape)
        count = x.numel() // self.num_features
        if count == 1:
            raise ValueError(f"expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        batch_mean, batch_var = _pooled(mean, var, 0)
        with torch.no_grad():
            self.running_mean.lerp_(batch_mean.flatten().to(self.running_mean.dtype), self.momentum)
            unbiased = batch_var.flatten() * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return batch_mean, batch_var


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return mean, var


def _pooled(mean: Tensor, var: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Moments of the union of equally large parts: v = mean(v_i + (mu_i - mu)^2), which does not cancel."""
    joint = mean.mean(axis, keepdim=True)
    return joint, (var + (mean - joint).square()).mean(axis, keepdim=True)


def _mix(logits: Tensor, parts: list[Tensor]) -> Tensor:
    first, *rest = [weight * part for weight, part in zip(logits.softmax(0).unbind(), parts, strict=True)]
    return sum(rest, first)
