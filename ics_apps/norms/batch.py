"""Layers whose training statistics pool the batch, and the frozen form of them. Their names live in `catalog.batch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ics_apps.norms.axes import channel_shape
from ics_apps.norms.registry import Dim

_TORCH_BATCH_NORMS: Mapping[Dim, type[_BatchNorm]] = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def batch_norm(channels: int, dim: Dim, **options: Any) -> _BatchNorm:
    """Torch's own batch norm of the right rank, or ours for tokens; options are those of `nn.BatchNorm2d`."""
    return _TORCH_BATCH_NORMS.get(dim, TokenBatchNorm)(channels, **options)


class TokenBatchNorm(_BatchNorm):
    """Batch norm of tokens (B, L, C): each channel over all tokens of all samples."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.dim() != 2:
            raise ValueError(f"expected tokens (B, L, C), got {input.dim() + 1} axes")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise tokens of shape (B, L, C)."""
        # (B * L, C) is a view, and torch's kernel pools its first axis.
        return super().forward(input.flatten(0, 1)).reshape(input.shape)


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine values are constants: x -> (x - mean) / sqrt(var + eps) * weight + bias.

    All four are buffers of shape (C,), named as in torch's batch norm, so a batch norm's state loads into it.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the constant map; the same in training and evaluation."""
        tokens = self.dim == "tokens"
        rows = x.flatten(0, 1) if tokens else x
        y = F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return y.reshape(x.shape) if tokens else y

    def extra_repr(self) -> str:
        """Channels and eps, as torch prints them."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Batch norm's counter has no meaning here, and would be refused as an unexpected key.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NoisyBatchNorm(nn.Module):
    """Batch norm followed, in training, by noise whose mean and scale jump at every step: y -> s * y + m.

    Per step and channel c, mu_c ~ U(-n_mu, n_mu) and sigma_c ~ U(1, n_sigma); then per sample and position
    m ~ U(mu_c - r_mu, mu_c + r_mu) and s ~ N(sigma_c, r_sigma).
    """

    def __init__(
        self,
        norm: _BatchNorm,
        dim: Dim,
        *,
        n_mu: float,
        n_sigma: float,
        r_mu: float,
        r_sigma: float,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.dim = dim
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training add the noise."""
        y: Tensor = self.norm(x)
        if not self.training:
            return y
        scale, shift = self.draw(y)
        return torch.addcmul(shift, y, scale)

    def draw(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step's noise for values `y`: the scale s and the shift m, both of its shape."""
        shape = channel_shape(self.norm.num_features, self.dim)
        mean = (2 * torch.rand(shape, dtype=y.dtype, device=y.device) - 1) * self.n_mu
        spread = 1 + torch.rand(shape, dtype=y.dtype, device=y.device) * (self.n_sigma - 1)
        shift = mean + (2 * torch.rand_like(y) - 1) * self.r_mu
        scale = spread + torch.randn_like(y) * self.r_sigma
        return scale, shift

    def extra_repr(self) -> str:
        """The four widths of the noise."""
        return f"n_mu={self.n_mu}, n_sigma={self.n_sigma}, r_mu={self.r_mu}, r_sigma={self.r_sigma}"
