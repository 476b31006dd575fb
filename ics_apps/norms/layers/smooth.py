"""Norms whose derivatives of every order are right: torch's fused kernels replaced by plain operations.

torch's fused batch and layer norm take saved statistics for constants from the third derivative on (pytorch issues
186256, 175754): layer norm gives wrong numbers without a word, and so does batch norm in versions before it was made to
raise (2.14 does). The engine of `moments` differentiates plain operations from the second derivative on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.axes import channel_axis, widened
from ics_apps.norms.layers.batch import BatchNormBase
from ics_apps.norms.options import NormError
from ics_apps.norms.registry import Dim, NormEntry


def smooth(norm: nn.Module, entry: NormEntry, dim: Dim) -> nn.Module:
    """The norm with every fused kernel inside it replaced; parameters and buffers are the same objects.

    Raises:
        NormError: The norm's higher derivatives do not exist, or no route with right ones is known.

    Example:
        >>> from ics_apps.norms import norm_entry
        >>> smooth(nn.LayerNorm(4), norm_entry("layer"), "tokens")
        SmoothLayerNorm(eps=1e-05)
    """
    if _any(norm, "replaces_gradient"):
        raise NormError(f"norm {entry.name!r} has a backward pass that is no gradient, by design; choose another norm")
    if _any(norm, "kinked"):
        raise NormError(f"norm {entry.name!r} has kinks, so its higher derivatives do not exist; choose another norm")
    if entry.thrice_differentiable:
        return norm
    if not any(isinstance(module, BatchNormBase | nn.LayerNorm) for module in norm.modules()):
        raise NormError(f"norm {entry.name!r} has no route with right higher derivatives; choose another norm")
    return _without_kernels(norm, dim)


def _any(norm: nn.Module, flag: str) -> bool:
    return any(getattr(module, flag, False) for module in norm.modules())


def _without_kernels(norm: nn.Module, dim: Dim) -> nn.Module:
    for name, child in norm.named_children():
        setattr(norm, name, _without_kernels(child, dim))
    if isinstance(norm, BatchNormBase):
        norm.by_engine = True
    return SmoothLayerNorm(norm, channel_axis(dim)) if isinstance(norm, nn.LayerNorm) else norm


class SmoothLayerNorm(nn.Module):
    """Layer norm over the channels of each feature vector, token or position by plain operations."""

    def __init__(self, norm: nn.LayerNorm, axis: int) -> None:
        super().__init__()
        self.eps = norm.eps
        self.axis = axis
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        values = widened(x)
        var, mean = torch.var_mean(values, self.axis, correction=0, keepdim=True)
        y = (values - mean) * torch.rsqrt(var + self.eps)
        shape = [-1] + [1] * (x.dim() - 1 - self.axis)
        y = y if self.weight is None else y * self.weight.view(shape)
        return (y if self.bias is None else y + self.bias.view(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        """The eps."""
        return f"eps={self.eps}"
