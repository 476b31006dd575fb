"""The convolutional blocks that the U-Nets are made of: two convolutions, plain or residual, and upsampling.

Each takes the sites of its norms (`nets.sites`); how levels are joined lives in `decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from ics_apps.nets.arguments import check_choice
from ics_apps.nets.sites import Site

Order = Literal["conv-norm-act", "conv-act-norm"]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]
Block = Literal["plain", "residual"]
Upsample = Literal["transpose", "nearest"]

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# Not in place: hooks may hold the tensor that an in-place activation would overwrite.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True)
class Style:
    """What all blocks of a net have in common.

    Attributes:
        block: Two convolutions one after the other, or with a shortcut around them.
        order: Norm before or behind the activation.
        activation: Left out where the norm contains one.

    Raises:
        ValueError: One of the three is none of its choices.
    """

    block: Block = "plain"
    order: Order = "conv-norm-act"
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check_choice("block", self.block, get_args(Block))
        check_choice("order", self.order, get_args(Order))
        check_choice("activation", self.activation, get_args(Activation))

    def make(self, in_channels: int, out_channels: int, site: Site, shortcut: Site) -> ConvPair:
        """The block of this style; a plain one has no use for the site of the shortcut's norm."""
        if self.block == "plain":
            return ConvPair(in_channels, out_channels, site, self.order, self.activation)
        return ResidualPair(in_channels, out_channels, site, self.order, self.activation, shortcut)


class ConvPair(nn.Module):
    """Two 3-wide convolutions, each with norm and activation: (B, C_in, *S) -> (B, C_out, *S)."""

    def __init__(self, in_channels: int, out_channels: int, site: Site, order: Order, activation: Activation) -> None:
        super().__init__()
        self.norm_first = order == "conv-norm-act"
        bias = not (self.norm_first and site.absorbs_bias)
        kind = nn.Identity if site.contains_activation else _ACTIVATIONS[activation]
        self.conv1 = CONVS[site.dim](in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm1 = site.norm(out_channels, self.conv1)
        self.act1 = kind()
        self.conv2 = CONVS[site.dim](out_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = site.norm(out_channels, self.conv2)
        self.act2 = kind()

    def forward(self, x: Tensor) -> Tensor:
        """Run both convolutions."""
        if self.norm_first:
            x = self.act1(self.norm1(self.conv1(x)))
            x = self.act2(self.norm2(self.conv2(x)))
        else:
            x = self.norm1(self.act1(self.conv1(x)))
            x = self.norm2(self.act2(self.conv2(x)))
        return x


class ResidualPair(ConvPair):
    """A `ConvPair` with a shortcut from its input to the sum before its last activation.

        conv-norm-act   act(norm(conv(h)) + s(x)),   h = act(norm(conv(x)))
        conv-act-norm   norm(act(conv(h) + s(x))),   h = norm(act(conv(x)))

    s is the identity where the channels agree, else a 1x1 convolution with the norm of its own site: without one, it
    would be the only convolution of the net whose size its norm does not set.

    Reference: He 2015 (1512.03385), the first form; the second: ours.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        site: Site,
        order: Order,
        activation: Activation,
        shortcut: Site,
    ) -> None:
        super().__init__(in_channels, out_channels, site, order, activation)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else NormedConv(in_channels, out_channels, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Run both convolutions and add the shortcut."""
        if self.norm_first:
            h = self.act1(self.norm1(self.conv1(x)))
            y: Tensor = self.act2(self.norm2(self.conv2(h)) + self.shortcut(x))
        else:
            h = self.norm1(self.act1(self.conv1(x)))
            y = self.norm2(self.act2(self.conv2(h) + self.shortcut(x)))
        return y


class NormedConv(nn.Sequential):
    """A 1x1 convolution with its norm: (B, C_in, *S) -> (B, C_out, *S)."""

    def __init__(self, in_channels: int, out_channels: int, site: Site) -> None:
        conv = CONVS[site.dim](in_channels, out_channels, 1, bias=not site.absorbs_bias)
        super().__init__(conv, site.norm(out_channels, conv))


class UpConv(nn.Sequential):
    """Finer resolution with a change of channels: (B, C_in, *S) -> (B, C_out, *(stride S)).

    `transpose` is a transposed convolution whose kernel is its stride, so that no two windows overlap; `nearest` a 1x1
    convolution and repetition. Child 0 is the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, site: Site, upsample: Upsample, stride: Sequence[int]
    ) -> None:
        bias = not site.absorbs_bias
        if upsample == "transpose":
            super().__init__(
                _TRANSPOSED[site.dim](in_channels, out_channels, tuple(stride), stride=tuple(stride), bias=bias)  # type: ignore[arg-type]
            )
        else:
            # A 1x1 convolution commutes with repetition and is as many times cheaper before it.
            conv = CONVS[site.dim](in_channels, out_channels, 1, bias=bias)
            repeat = nn.Upsample(scale_factor=tuple(map(float, stride)), mode="nearest")
            super().__init__(conv, repeat if math.prod(stride) > 1 else nn.Identity())
