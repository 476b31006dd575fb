"""Entries of the elementwise family: no statistics at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm("none", family="elementwise", pools=(), scale_invariant=False, reference="-")
def none(channels: int, *, dim: Dim) -> nn.Module:  # noqa: ARG001 (every builder has them)
    """No normalization: the identity.

    y = x.

    When to use: as the arm of a comparison that shows what a norm does. The layer before it keeps its bias.
    """
    from torch import nn

    return nn.Identity()


@register_norm("dyt", family="elementwise", pools=(), scale_invariant=False, reference="Zhu 2025 (2503.10622)")
def dyt(channels: int, *, dim: Dim, alpha: float = 0.5) -> nn.Module:
    """Dynamic tanh: squashes each value instead of measuring statistics.

    y = weight * tanh(alpha * x) + bias with one learned alpha a layer.

    When to use: in place of layer norm in transformers; where a sample's statistics must not matter. A bias before it
    acts inside the tanh and is not absorbed.

    Options: `alpha` is the start value; wide language models need smaller ones.

    Reference: Zhu 2025 (2503.10622).
    """
    from ics_apps.norms.elementwise import DynamicTanh

    return DynamicTanh(channels, dim, alpha)
