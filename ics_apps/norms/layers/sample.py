"""Layers whose statistics stay within one sample. Their names live in `catalog.sample`."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import channel_axis, widened
from ics_apps.norms.engine.kernels import MOST_IN_CHANNELS_LAST, MOST_IN_ROWS, lost_digits, reveals_moments
from ics_apps.norms.engine.moments import dense_columns, normalize, pooled_groups, standardized
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.engine.scaling import broadcast
from ics_apps.norms.layers.base import MomentNorm, refuse_single_values_of_groups, split_tensors
from ics_apps.norms.registry import Dim

FEW_CHANNELS: Final = 4  # of a group: so few are faster by the engine in channels_last (0.8 of the step of a U-Net)


class GroupNorm(nn.GroupNorm):
    """Group norm by torch's kernel, or by the engine of `moments` where the kernel has lost digits.

    On a CPU the kernel takes the variance of a channels_last input as a difference of squares: with |mean| = 33 sigma
    the result is off by 1e-2. Tokens (B, L, C) lie that way too. Groups of few channels go to the engine there, as the
    kernel takes longer for them.
    """

    def __init__(self, num_groups: int, num_channels: int, dim: Dim, eps: float, affine: bool) -> None:
        super().__init__(num_groups, num_channels, eps=eps, affine=affine)
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise each group of each sample over its channels and positions."""
        few = self.dim in (2, 3) and self.num_channels <= FEW_CHANNELS * self.num_groups
        if few and not input.is_contiguous() and reveals_moments(input):
            return normalize(input, self.dim, self.program, *self.parameters())[0]
        # In channels_last order only images have a kernel; as one, tokens are not copied.
        image = input.mT.unsqueeze(3) if self.dim == "tokens" else input
        if not reveals_moments(image):
            y = super().forward(image)
        else:
            last = not image.is_contiguous()
            image = image.contiguous(memory_format=channels_last_of(image)) if last else image
            sizes = (image.shape[0], self.num_channels, image[0, 0].numel())
            y, mean, rstd = torch.native_group_norm(image, self.weight, self.bias, *sizes, self.num_groups, self.eps)
            if lost_digits(mean, rstd, MOST_IN_CHANNELS_LAST["group"] if last else MOST_IN_ROWS):
                return normalize(input, self.dim, self.program, *self.parameters())[0]
        return y.squeeze(3).mT if self.dim == "tokens" else y

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the moments of each group."""
        weight, bias, _ = split_tensors(tensors, self.affine)
        return standardized(mean, *pooled_groups(mean, var, self.num_groups), weight, bias, self.eps)


class InstanceNorm(GroupNorm):
    """Instance norm: group norm of single channels, in channels_last by the engine of `moments`.

    torch's own instance norm leaves channels_last by two copies. In that order group norm of single channels keeps it,
    but its backward pass is about 8 times that of batch norm on a CPU.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float, affine: bool) -> None:
        super().__init__(num_features, num_features, dim, eps, affine)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise each channel of each sample over its positions.

        Raises:
            ValueError: There is one position only, whose normalised value is always 0.
        """
        refuse_single_values_of_groups(input, self.num_channels)
        by_channels = self.dim == "tokens" or not input.is_contiguous()
        if by_channels and reveals_moments(input):
            return normalize(input, self.dim, self.program, *self.parameters())[0]
        return super().forward(input)

    def extra_repr(self) -> str:
        """Channels, eps and affine, as torch prints them."""
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each sample, token or position."""

    def __init__(self, num_features: int, dim: Dim, eps: float, affine: bool) -> None:
        super().__init__(num_features, eps=eps, elementwise_affine=affine)
        self.axis = channel_axis(dim)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise each position."""
        # In channels_last order the moved axis is a view; otherwise the output comes out in channels_last.
        rows = input.movedim(self.axis, -1)
        if not reveals_moments(rows):
            return super().forward(rows).movedim(-1, self.axis)
        y, mean, rstd = torch.native_layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps)
        if lost_digits(mean, rstd, MOST_IN_ROWS):
            # The same function of differences, which are exact.
            values = widened(rows)
            y = super().forward(values - values.mean(-1, keepdim=True)).to(input.dtype)
        return y.movedim(-1, self.axis)


class FilterResponseNorm(MomentNorm):
    """Division by the root mean square of each channel's positions, with its thresholded linear unit.

    z = weight * x / sqrt(mean_S x^2 + eps) + bias, y = max(z, threshold); all three parameters of shape (C,).
    """

    kinked = True

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__(num_features, dim, eps)
        self.threshold = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and cut below the threshold."""
        above, _, _ = normalize(widened(x), self.dim, self.program, *self.tensors(), self.threshold)
        return by_rule(_linear_unit(self.dim), above, self.threshold).to(x.dtype)

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset of z - threshold, by the quadratic mean."""
        weight, bias, threshold = tensors
        # About the centre 0, since mean_S x^2 = var + mean^2.
        return standardized(mean, torch.zeros_like(mean), var + mean.square(), weight, bias - threshold, self.eps)


class GlobalResponseNorm(MomentNorm):
    """Channels compete by their energy g_c = ||x_c||_2 over the positions.

    y = x + weight * x * g / (mean_C g + eps) + bias.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__(num_features, dim, eps)
        nn.init.zeros_(self.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of each sample by its share of the energy."""
        positions = x.numel() / max(x.shape[0] * self.num_features, 1)
        return normalize(x, self.dim, partial(self.program, positions=positions), *self.tensors())[0]

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor, positions: float = 1.0) -> tuple[Tensor, Tensor]:
        """Scale and offset by the share of the energy."""
        weight, bias = tensors
        energy = _root(positions * (var + mean.square()))
        scale = 1 + weight * energy / (energy.mean(1, keepdim=True) + self.eps)
        return scale, mean * scale + bias


def _linear_unit(dim: Dim) -> Rule:
    """Rule of max(above, 0) + threshold, whose gradient by the threshold is the sum of what comes in."""

    def value(above: Tensor, threshold: Tensor) -> Tensor:
        return torch.relu(above) + broadcast(threshold, dim)

    def gradients(gradient: Tensor, inputs: tuple[Tensor, ...], _: tuple[Tensor, ...], wanted: Wanted) -> Gradients:
        total = dense_columns(gradient, dim).sum(2).sum(0) if wanted[1] else None
        return torch.ops.aten.threshold_backward(gradient, inputs[0], 0), total

    return Rule(value, lambda above, threshold: (above.clamp_min(0).add_(broadcast(threshold, dim)), ()), gradients)


def channels_last_of(image: Tensor) -> torch.memory_format:
    """The memory format with channels innermost, where torch has one for this number of axes."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(image.dim(), torch.contiguous_format)


def _root(square: Tensor) -> Tensor:
    """Square root with the gradient 0 at 0, where the true one is infinite."""
    at_zero = square == 0
    return torch.where(at_zero, 1, square).sqrt() * ~at_zero
