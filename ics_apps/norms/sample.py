"""Layers whose statistics stay within one sample. Their names live in `catalog.sample`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.norms.axes import channel_axis, channel_shape, space_axes, widened
from ics_apps.norms.registry import Dim


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of tokens (B, L, C): each group of channels over all tokens of its sample."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise tokens of shape (B, L, C)."""
        # As an image (B, C, L, 1) the tokens already lie in channels_last order, so nothing is copied.
        image = input.transpose(1, 2).unsqueeze(-1)
        return super().forward(image).squeeze(-1).transpose(1, 2)


class InstanceNorm(nn.GroupNorm):
    """Instance norm by the faster torch kernel: group norm with one channel a group, or batch norm of one sample.

    torch's own instance norm leaves channels_last by two copies. In that order group norm of single channels keeps it,
    but its backward pass is about 20 times that of batch norm on a CPU, and its one-pass variance loses the digits of
    channels with a large mean; batch norm of one sample at a time is the same function, without either fault.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float, affine: bool) -> None:
        super().__init__(num_features, num_features, eps=eps, affine=affine)
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise each channel of each sample over its positions.

        Raises:
            ValueError: There is one position only, whose normalised value is always 0.
        """
        tokens = self.dim == "tokens"
        image = input.transpose(1, 2).unsqueeze(-1) if tokens else input
        if image.shape[2:].numel() == 1:
            raise ValueError(
                f"instance norm of {self.num_channels} channels needs more than one position, got input size "
                f"{tuple(input.shape)}; use a larger input, fewer poolings, or the norm 'group'"
            )
        sample_by_sample = (
            image.device.type == "cpu" and not image.is_contiguous() and not torch.compiler.is_compiling()
        )
        y = self._sample_by_sample(image) if sample_by_sample else super().forward(image)
        return y.squeeze(-1).transpose(1, 2) if tokens else y

    def _sample_by_sample(self, image: Tensor) -> Tensor:
        samples = torch.split(image, 1)
        return torch.cat([F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps) for x in samples])

    def extra_repr(self) -> str:
        """Channels, eps and affine, as torch prints them."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels at each position of an image (B, C, *S)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise each position."""
        # In channels_last order the moved axis is a view; otherwise the output comes out in channels_last.
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class RMSNorm(nn.RMSNorm):
    """RMS norm over the channels of each sample, token or position."""

    def __init__(self, num_features: int, dim: Dim, eps: float | None, affine: bool) -> None:
        super().__init__(num_features, eps=eps, elementwise_affine=affine)
        self.axis = channel_axis(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position."""
        # Under autocast the weight is wider than the input, which torch's fused kernel refuses with a warning.
        weight = None if self.weight is None else self.weight.to(x.dtype)
        y = F.rms_norm(x.movedim(self.axis, -1), list(self.normalized_shape), weight, self.eps)
        return y.movedim(-1, self.axis)


class FilterResponseNorm(nn.Module):
    """Division by the root mean square of each channel's positions, with its thresholded linear unit.

    z = weight * x / sqrt(mean_S x^2 + eps) + bias, y = max(z, threshold); all three parameters of shape (C,).
    """

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.threshold = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and cut below the threshold."""
        shape = channel_shape(self.num_features, self.dim)
        mean_square = widened(x).square().mean(space_axes(self.dim), keepdim=True)
        scale = torch.rsqrt(mean_square + self.eps) * self.weight.view(shape)
        z = torch.addcmul(self.bias.view(shape).to(x.dtype), x, scale.to(x.dtype))
        return torch.maximum(z, self.threshold.view(shape).to(x.dtype))

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{self.num_features}, eps={self.eps}"


class GlobalResponseNorm(nn.Module):
    """Channels compete by their energy g_c = ||x_c||_2 over the positions.

    y = x + weight * x * g / (mean_C g + eps) + bias.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of each sample by its share of the energy."""
        shape = channel_shape(self.num_features, self.dim)
        values, axes = widened(x), space_axes(self.dim)
        # vector_norm has the gradient 0 at x = 0, where sqrt(sum x^2) has none.
        energy = torch.linalg.vector_norm(values, dim=axes, keepdim=True) if axes else values.abs()
        share = energy / (energy.mean(channel_axis(self.dim), keepdim=True) + self.eps)
        scale = 1 + share * self.weight.view(shape)
        return torch.addcmul(self.bias.view(shape).to(x.dtype), x, scale.to(x.dtype))

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{self.num_features}, eps={self.eps}"


def layer_norm(channels: int, dim: Dim, *, eps: float, affine: bool) -> nn.LayerNorm:
    """Layer norm over the channels, for features, tokens or images."""
    kind = nn.LayerNorm if dim in (0, "tokens") else ChannelLayerNorm
    return kind(channels, eps=eps, elementwise_affine=affine)


def group_norm(channels: int, dim: Dim, *, num_groups: int, eps: float, affine: bool) -> nn.GroupNorm:
    """Group norm, for features, tokens or images."""
    kind = TokenGroupNorm if dim == "tokens" else nn.GroupNorm
    return kind(num_groups, channels, eps=eps, affine=affine)
