"""Layers without statistics: each value is mapped by itself. Their names live in `catalog.elementwise`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.axes import channel_shape
from ics_apps.norms.registry import Dim


class DynamicTanh(nn.Module):
    """y = weight * tanh(alpha * x) + bias with a scalar alpha; weight and bias of shape (C,)."""

    def __init__(self, num_features: int, dim: Dim, alpha: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Squash, scale and shift each value."""
        shape = channel_shape(self.num_features, self.dim)
        squashed = torch.tanh(self.alpha.to(x.dtype) * x)
        return torch.addcmul(self.bias.view(shape).to(x.dtype), squashed, self.weight.view(shape).to(x.dtype))

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.num_features}"
