"""Power norm, whose backward pass follows its authors and is no gradient. Its name lives in `catalog.batch_like`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import space_axes, widened
from ics_apps.norms.engine.moments import channel_moments, normalize, standardized
from ics_apps.norms.engine.scaling import broadcast, scaled
from ics_apps.norms.layers.base import affine_or_identity
from ics_apps.norms.recompute import in_recompute
from ics_apps.norms.registry import Dim


class PowerNorm(nn.Module):
    """y = x / sqrt(psi^2 + eps) * weight + bias.

    Buffers: `running_square` psi^2, `running_gradient` nu, and `num_batches_tracked` for the warm-up, during which the
    batch's own quadratic mean divides and gradients are the true ones.
    """

    replaces_gradient = True
    running_square: Tensor
    running_gradient: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, dim: Dim, eps: float, momenta: tuple[float, float], warmup_steps: int, affine: bool
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.momentum, self.backward_momentum = momenta
        self.warmup_steps = warmup_steps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_square", torch.ones(num_features))
        self.register_buffer("running_gradient", torch.zeros(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training move the running quadratic mean.

        Raises:
            ValueError: In training, an empty batch.
        """
        weight, bias = affine_or_identity(self.weight, self.bias, self.running_square)
        if self.training and x.numel() == 0:
            raise ValueError(f"power norm needs values to train on, got input size {tuple(x.shape)}")
        if self.training and int(self.num_batches_tracked) < self.warmup_steps:
            y, mean, var = normalize(x, self.dim, self._by_batch, weight, bias)
            self._observe(pooled_square(mean, var))
            return y
        values = widened(x)
        scale = torch.rsqrt(self.running_square + self.eps)
        if not self.training:
            return scaled(values, self.dim, scale * weight, bias).to(x.dtype)
        with torch.no_grad():
            square = pooled_square(*channel_moments(values, self.dim))
        z = _PowerStep.apply(values, square, scale, self)
        self._observe(square)
        return scaled(z, self.dim, weight, bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Channels, eps, the two momenta and the warm-up."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"backward_momentum={self.backward_momentum}, warmup_steps={self.warmup_steps}"
        )

    def _by_batch(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = tensors
        return standardized(mean, torch.zeros_like(mean), pooled_square(mean, var), weight, bias, self.eps)

    @torch.no_grad()
    def _observe(self, square: Tensor) -> None:
        if in_recompute():
            return
        self.running_square.lerp_(square.to(self.running_square.dtype), self.momentum)
        self.num_batches_tracked += 1


def pooled_square(mean: Tensor, var: Tensor) -> Tensor:
    """mean_{N,S} x^2 of each channel, from the moments (B, C) of each sample."""
    return (var + mean.square()).mean(0)


class _PowerStep(torch.autograd.Function):
    """z = x * scale; backward by the running correction nu, which it moves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, square: Tensor, scale: Tensor, norm: PowerNorm) -> Tensor:
        z = x * broadcast(scale, norm.dim)
        ctx.norm = norm
        ctx.save_for_backward(z, square)
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, square = ctx.saved_tensors
        norm: PowerNorm = ctx.norm
        nu = (norm.backward_momentum * norm.running_gradient).to(z.dtype)
        corrected = gradient - broadcast(nu, norm.dim) * z
        found = (corrected * z).sum((0, *space_axes(norm.dim))) / (z.numel() / norm.num_features)
        norm.running_gradient.add_(found.to(nu.dtype))
        return corrected * broadcast(torch.rsqrt(square + norm.eps).to(z.dtype), norm.dim), None, None, None
