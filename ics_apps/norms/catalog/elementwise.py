"""Entries of the elementwise family: no statistics at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm("none", family="elementwise", pools=(), scale_invariant=False, thrice_differentiable=True, reference="-")
def none(channels: int, *, dim: Dim) -> nn.Module:  # noqa: ARG001 (every builder has them)
    """No normalization: the identity.

    y = x.

    When to use: as the arm of a comparison that shows what a norm does. The layer before it keeps its bias.
    """
    from torch import nn

    return nn.Identity()


@register_norm(
    "affine", family="elementwise", pools=(), scale_invariant=False, thrice_differentiable=True, reference="ours"
)
def affine(channels: int, *, dim: Dim) -> nn.Module:
    """The learned scale and shift of a norm without the norm.

    y = weight * x + bias, one pair a channel; starts as the identity.

    When to use: as the arm of a comparison that tells what the normalization does from what its parameters do; where a
    trained batch norm is to be kept with its statistics folded in.

    Traps: behind a linear layer or convolution it adds nothing that the layer cannot do itself, but it changes the
    speed of learning, since each channel's scale is then a product of two. The layer before it keeps its bias.

    Reference: ours; Frankle 2021 (2003.00152) trains nothing else.
    """
    from ics_apps.norms.layers.elementwise import Affine

    return Affine(channels, dim)


@register_norm(
    "dyt",
    family="elementwise",
    pools=(),
    scale_invariant=False,
    thrice_differentiable=True,
    reference="Zhu 2025 (2503.10622)",
)
def dyt(channels: int, *, dim: Dim, alpha: float = 0.5) -> nn.Module:
    """Dynamic tanh: squashes each value instead of measuring statistics.

    y = weight * tanh(alpha * x) + bias with one learned alpha a layer.

    When to use: in place of layer norm in transformers; where a sample's statistics must not matter. A bias before it
    acts inside the tanh and is not absorbed.

    Options: `alpha` is the start value; wide language models need smaller ones.

    Reference: Zhu 2025 (2503.10622).
    """
    from ics_apps.norms.layers.elementwise import DynamicTanh

    return DynamicTanh(channels, dim, alpha)


@register_norm(
    "derf",
    family="elementwise",
    pools=(),
    scale_invariant=False,
    thrice_differentiable=True,
    reference="Chen 2025 (2512.10938)",
)
def derf(channels: int, *, dim: Dim, alpha: float = 0.5, shift: float = 0.0) -> nn.Module:
    """Dynamic erf: squashes each value by the error function instead of measuring statistics.

    y = weight * erf(alpha * x + shift) + bias with one learned alpha and one learned shift a layer.

    When to use: as `dyt`, which its authors report it to beat. erf reaches its bounds sooner than tanh (at the same
    alpha its slope at 0 is 1.13 times as steep), so large activations lose their gradient sooner: watch the saturated
    fraction. A bias before it acts inside the erf and is not absorbed.

    Options: `alpha` and `shift` are start values.

    Reference: Chen 2025 (2512.10938).
    """
    from ics_apps.norms.layers.elementwise import DynamicErf

    return DynamicErf(channels, dim, alpha, shift)
