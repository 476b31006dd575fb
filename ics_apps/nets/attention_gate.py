"""The attention gate of a skip stream, and the concatenation that it stands in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ics_apps.nets.conv_blocks import CONVS, NormedConv
from ics_apps.nets.sites import Site
from ics_apps.norms import NormalizedConcat, NormSpec


class AttentionGate(nn.Module):
    """Let the up stream g choose the positions of the skip stream x: x * alpha, with alpha in (0, 1) a position.

        alpha = sigmoid(psi^T relu(W_x x + W_g g) + b)

    W_x and W_g are 1x1 convolutions to the channels of x, each with the gate's norm, so that neither stream is louder
    than the other inside; psi is a 1x1 convolution to one channel. There is no norm behind psi: over a single channel
    most norms are constant or not defined.

    Args:
        channels: Of x.
        gate_channels: Of g, which has the resolution of x.
        site: Of the two norms.

    Example:
        >>> gate = AttentionGate(4, 6, Site("gate level 0", "none", 2))
        >>> x = torch.ones(1, 4, 5, 5)
        >>> y = gate(x, torch.zeros(1, 6, 5, 5))
        >>> y.shape, bool((0 < y).all() and (y < x).all())
        (torch.Size([1, 4, 5, 5]), True)

    Reference: Oktay 2018 (1804.03999), equations 1 and 2; there g comes from the coarser level and alpha is upsampled.
    """

    def __init__(self, channels: int, gate_channels: int, site: Site) -> None:
        super().__init__()
        self.of_skip = NormedConv(channels, channels, site)
        self.of_up = NormedConv(gate_channels, channels, site)
        self.psi = CONVS[site.dim](channels, 1, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """The gated skip stream (B, C, *S)."""
        return x * self.alpha(x, g)

    def alpha(self, x: Tensor, g: Tensor) -> Tensor:
        """The weight of each position, (B, 1, *S)."""
        return torch.sigmoid(self.psi(torch.relu(self.of_skip(x) + self.of_up(g))))


class GatedConcat(NormalizedConcat):
    """A `NormalizedConcat` of `skip` and `up` whose normalised skip stream is gated by the normalised up stream.

    The gate comes behind the norms: before them, a norm of each position (`rms`, `layer_c`) would undo it.
    """

    def __init__(
        self, channels: Mapping[str, int], norms: Mapping[str, NormSpec], dim: int, gate: AttentionGate
    ) -> None:
        super().__init__(channels, norms, dim)
        self.gate = gate

    def normalized(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """Normalise both streams, then gate the first."""
        skip, up = super().normalized(*streams)
        return self.gate(skip, up), up
