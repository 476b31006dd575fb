"""Norms whose scale and shift come from a condition: a class, a vector or a style. Names: `catalog.conditional`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.condition import check_ids, condition
from ics_apps.norms.engine.axes import channel_axis, widened
from ics_apps.norms.engine.blocked import sample_blocks
from ics_apps.norms.engine.kernels import MOST_IN_ROWS, lost_digits
from ics_apps.norms.engine.moments import (
    channel_moments,
    normalize,
    pooled,
    pooled_groups,
    standardized,
)
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.engine.scaling import broadcast
from ics_apps.norms.layers.base import refuse_single_values_of_groups
from ics_apps.norms.layers.batch_like import RunningEvalNorm
from ics_apps.norms.registry import Dim, NormError


class ConditionalAffine(nn.Module):
    """A scale and a shift (B, C) for each sample: from a table of classes, or linear in a vector.

    Both start so that the scale is 1 and the shift 0 for every condition.

    Args:
        num_features: C.
        num_classes: Rows of the table, for int64 labels (B,).
        label_features: E > 0: labels are vectors, float (B, E), and scale = 1 + linear(label).
    """

    def __init__(self, num_features: int, num_classes: int, label_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.label_features = label_features
        if label_features:
            self.linear = nn.Linear(label_features, 2 * num_features)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        else:
            self.table = nn.Embedding(num_classes, 2 * num_features)
            nn.init.zeros_(self.table.weight)

    def forward(self, label: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Scale and shift (B, C) of `batch` samples.

        Raises:
            NormError: The label has another shape or type than declared, or is out of range.
        """
        if not self.label_features:
            values = self.table(check_ids("label", label, batch, self.num_classes, "num_classes"))
        elif isinstance(label, Tensor) and tuple(label.shape) == (batch, self.label_features):
            values = self.linear(label.to(self.linear.weight.dtype))
        else:
            got = tuple(label.shape) if isinstance(label, Tensor) else repr(label)
            raise NormError(f"label is a vector of {self.label_features} for each of the {batch} samples, got {got}")
        scale, shift = widened(values).chunk(2, dim=1)
        return 1 + scale, shift

    def extra_repr(self) -> str:
        """Channels."""
        return f"{self.num_features}"


class ConditionalBatchNorm(RunningEvalNorm):
    """Batch norm whose weight and bias depend on each sample's label."""

    def __init__(self, affine: ConditionalAffine, dim: Dim, eps: float, momentum: float) -> None:
        super().__init__(affine.num_features, dim, eps, momentum, affine=False)
        self.affine = True  # it comes with the call
        self.conditional = affine

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Normalise, then scale and shift each sample by its label.

        Raises:
            NormError: No label, or one of the wrong kind.
            ValueError: In training, one value per channel.
        """
        return self.normalized(x, *self.conditional(condition("label", label), x.shape[0]))

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the batch's moments."""
        scale, shift = tensors
        return standardized(mean, *pooled(mean, var, 0), scale, shift, self.eps)


class ConditionalGroupNorm(nn.Module):
    """Group norm whose weight and bias depend on each sample's label; C groups make it instance norm."""

    def __init__(self, affine: ConditionalAffine, dim: Dim, eps: float, num_groups: int) -> None:
        super().__init__()
        self.conditional = affine
        self.num_features = affine.num_features
        self.num_groups = num_groups
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Normalise, then scale and shift each sample by its label.

        Raises:
            NormError: No label, or one of the wrong kind.
            ValueError: Each group has a single value, whose normalised value is always 0.
        """
        refuse_single_values_of_groups(x, self.num_groups)
        rows = self.conditional(condition("label", label), x.shape[0])
        return normalize(x, self.dim, self.program, *rows)[0]

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the moments of each group."""
        scale, shift = tensors
        return standardized(mean, *pooled_groups(mean, var, self.num_groups), scale, shift, self.eps)

    def extra_repr(self) -> str:
        """Groups, channels and eps."""
        return f"{self.num_groups}, {self.num_features}, eps={self.eps}"


class ConditionalLayerNorm(nn.Module):
    """Layer norm of features or tokens whose weight and bias depend on each sample's label."""

    def __init__(self, affine: ConditionalAffine, dim: Dim, eps: float) -> None:
        super().__init__()
        self.conditional = affine
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Normalise each sample or token, then scale and shift it by its sample's label.

        Raises:
            NormError: No label, or one of the wrong kind.
        """
        scale, shift = self.conditional(condition("label", label), x.shape[0])
        if self.dim == 0 or x.numel() == 0:
            return self._formula(x, scale, shift)
        return by_rule(Rule(self._formula, self._by_kernel, self._gradients), x, scale, shift)

    def _formula(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        values = widened(x)
        centred = values - values.mean(-1, keepdim=True)
        # Once more, for what the mean lost by being rounded.
        centred = centred - centred.mean(-1, keepdim=True)
        normal = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return (normal * broadcast(scale, self.dim) + broadcast(shift, self.dim)).to(x.dtype)

    def _by_kernel(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        values = widened(x)
        normal, mean, rstd = torch.native_layer_norm(values, values.shape[-1:], None, None, self.eps)
        if lost_digits(mean, rstd, MOST_IN_ROWS):
            values = values - values.mean(-1, keepdim=True)
            normal, _, rstd = torch.native_layer_norm(values, values.shape[-1:], None, None, self.eps)
        y = (normal * scale.unsqueeze(1)).add_(shift.unsqueeze(1))
        return y.to(x.dtype), (normal, rstd)

    def _gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: Wanted
    ) -> Gradients:
        x, scale, _shift = inputs
        dx = torch.empty_like(x, dtype=widened(x).dtype)
        by_scale, by_shift = [], []
        for rows in sample_blocks(x):
            (normal, rstd), g = (tensor[rows] for tensor in kept), widened(gradient[rows])
            by_scale.append((g * normal).sum(1))
            by_shift.append(g.sum(1))
            # Of a normalised input the mean is 0 and the deviation 1, but for eps; its own rstd remains.
            slope = torch.ops.aten.native_layer_norm_backward(
                g * scale[rows].unsqueeze(1), normal, normal.shape[-1:], torch.zeros_like(rstd), torch.ones_like(rstd),
                None, None, [True, False, False],
            )[0]  # fmt: skip
            torch.mul(slope, rstd, out=dx[rows])
        found = (dx.to(x.dtype), torch.cat(by_scale).to(scale.dtype), torch.cat(by_shift).to(scale.dtype))
        return tuple(d if want else None for d, want in zip(found, wanted, strict=True))

    def extra_repr(self) -> str:
        """The eps."""
        return f"eps={self.eps}"


class AdaptiveInstanceNorm(nn.Module):
    """Each channel of each sample takes mean and standard deviation of the style's: s(y) (x - mu(x)) / s(x) + mu(y)."""

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Normalise by the style, a feature map with the channels of x, any size, and its batch or one sample.

        Raises:
            NormError: No style, or one of the wrong shape.
            ValueError: x has a single position, whose normalised value is always 0.
        """
        refuse_single_values_of_groups(x, self.num_features)
        given = condition("style", style)
        axis = channel_axis(self.dim)
        if not isinstance(given, Tensor) or given.dim() != x.dim() or given.shape[axis] != self.num_features or (
            given.shape[0] not in (1, x.shape[0])
        ):  # fmt: skip
            got = tuple(given.shape) if isinstance(given, Tensor) else repr(given)
            raise NormError(
                f"style is a feature map of {self.num_features} channels and of the batch or one sample, for input "
                f"{tuple(x.shape)}; got {got}"
            )
        return normalize(x, self.dim, self.program, *channel_moments(given, self.dim))[0]

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset from own and style moments."""
        style_mean, style_var = tensors
        scale = torch.sqrt(style_var + self.eps) * torch.rsqrt(var + self.eps)
        return scale, style_mean.expand_as(mean)

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{self.num_features}, eps={self.eps}"
