"""The U-Net in one, two or three dimensions, with a norm chosen for each site. No losses, no Lightning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from ics_apps.nets.arguments import check_choice, check_positive
from ics_apps.nets.conv_blocks import CONVS, Activation, Block, ConvPair, Order, Style, UpConv, Upsample
from ics_apps.nets.decoder import Attention, DecoderLevel, Streams, decoder_norms, join_streams
from ics_apps.nets.padding import pad_far_ends
from ics_apps.nets.sites import Site
from ics_apps.nets.space_to_depth import depth_to_space, space_to_depth
from ics_apps.norms import NormSpec

SITES = ("encoder", "bottleneck", "decoder", "skip", "up", "shortcut", "gate")

_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class UNet(nn.Module):
    """U-Net: `depth` poolings down, as many upsamplings back, each level joined by its skip stream.

    Level i has w_i = min(width * 2^i, max_width) channels and works at 1 / 2^i of the input's resolution, or what
    `strides` makes of it:

        encoder.i   (i < depth)  convs w_{i-1} -> w_i, then max-pooling
        bottleneck  (i = depth)  convs w_{i-1} -> w_i
        decoder.i                up w_{i+1} -> w_i, concat (skip, up) = 2 w_i, convs 2 w_i -> w_i
        head                     1x1 conv w_0 -> num_classes

    where convs are two 3-wide convolutions, each with a norm and an activation (`ConvPair`, or `ResidualPair`).
    `decoder.i` has the resolution of `encoder.i`, so `decoder.0` is the last to run.

    The two streams of a concatenation need not be equally loud: the skip comes normalised and rectified out of the
    encoder, the up stream raw out of a transposed convolution, and the larger one dominates the next layer.
    `normalize_streams` puts a norm on either or both before they meet. The convolution and norm behind the
    concatenation remove the streams' common scale anyway, so it is their ratio that this changes.

    Any input size works: sizes that the strides do not divide are padded at their far ends by repeating the border, and
    the output is cropped to the input's size.

    Norms on weights act on the convolution before their site; the skip stream has none and refuses them.

    Args:
        in_channels: C of the input (B, C, *S).
        num_classes: K of the output logits (B, K, *S).
        dim: Number of space axes: 1, 2 or 3.
        norm: The norm of every site that `site_norms` does not name.
        width: Channels of the first level.
        depth: Number of poolings, at least 1.
        max_width: Upper bound of the channels of a level.
        site_norms: Norms of single sites: `encoder`, `bottleneck`, `decoder`; `skip`, `up` if they are normalised;
            `shortcut` (of its 1x1 convolution) if the block is residual, `gate` if there is attention.
        normalize_streams: Which streams are normalised before the concatenation.
        block: Two convolutions, or two with a shortcut around them.
        attention: "gate": each skip stream is weighed position by position (`AttentionGate`).
        deep_supervision: Number of coarser levels 1, 2, ... with logits of their own in training, below `depth`.
        strides: What each pooling divides the axes by, from fine to coarse, as [[1, 2, 2], [2, 2, 2]] for volumes whose
            first axis is coarsely spaced; None is 2 everywhere.
        order: Norm before or behind the activation.
        activation: The activation of every convolution; left out where the norm contains one (`filter_response`).
        upsample: Transposed convolution, or 1x1 convolution and nearest-neighbour repetition.
        fold: r: the net works at 1 / r of the resolution on blocks of r^dim positions folded into the channels, and
            unfolds the logits. Few wide layers instead of many narrow ones: faster at equal accuracy on large, simple
            images; 1 is the plain U-Net.

    Attributes:
        stride: Input positions of one position of the bottleneck on every axis (their least common multiple), with the
            default strides fold * 2^depth.

    Raises:
        NormError: A norm cannot be built (the message names site and level), or a site is unknown or not in this net.
        ValueError: Another argument is out of its range.

    Example:
        >>> import torch
        >>> net = UNet(1, 2, norm="group", width=8, depth=2, normalize_streams="both", deep_supervision=1)
        >>> [tuple(logits.shape) for logits in net(torch.zeros(1, 1, 17, 20))]
        [(1, 2, 17, 20), (1, 2, 9, 10)]
        >>> net.eval()(torch.zeros(1, 1, 17, 20)).shape
        torch.Size([1, 2, 17, 20])
        >>> [name for name, _ in net.decoder[0].concat.named_children()]
        ['skip', 'up']

    Reference: Ronneberger 2015 (1505.04597); deep supervision as in Isensee 2021 (nnU-Net); norms by site and by
    stream: ours.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dim: int = 2,
        norm: NormSpec = "batch",
        *,
        width: int = 16,
        depth: int = 4,
        max_width: int = 512,
        site_norms: dict[str, NormSpec] | None = None,
        normalize_streams: Streams = "none",
        block: Block = "plain",
        attention: Attention = "none",
        deep_supervision: int = 0,
        strides: list[list[int]] | None = None,
        order: Order = "conv-norm-act",
        activation: Activation = "relu",
        upsample: Upsample = "transpose",
        fold: int = 1,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes, width=width, depth=depth)
        check_positive(max_width=max_width, fold=fold)
        check_choice("dim", dim, tuple(CONVS))
        check_choice("upsample", upsample, get_args(Upsample))
        check_choice("deep_supervision", deep_supervision, tuple(range(depth)))
        style = Style(block, order, activation)
        norms = decoder_norms(
            SITES, norm, site_norms or {}, normalize_streams=normalize_streams, attention=attention, block=block
        )
        widths = [min(width * 2**level, max_width) for level in range(depth + 1)]
        steps = _steps(strides, depth, dim)

        def site(name: str, level: int) -> Site:
            return Site(f"{name} level {level}", norms[name], dim)

        def convs(name: str, level: int, channels: int) -> ConvPair:
            shortcut = Site(f"shortcut of {name} level {level}", norms["shortcut"], dim)
            return style.make(channels, widths[level], site(name, level), shortcut)

        def decoder_level(level: int) -> DecoderLevel:
            up = UpConv(widths[level + 1], widths[level], site("up", level), upsample, steps[level])
            streams = {"skip": widths[level], "up": widths[level]}
            gate = site("gate", level) if attention == "gate" else None
            concat = join_streams(up, streams, norms, gate, f"decoder level {level}", dim)
            return DecoderLevel(up, concat, convs("decoder", level, 2 * widths[level]))

        self.dim = dim
        self.fold = fold
        # Input positions of one position of each level, by axis.
        self.level_strides = _cumulated(fold, steps, dim)
        self.stride = math.lcm(*self.level_strides[-1])
        inputs = [in_channels * fold**dim, *widths]
        self.encoder = nn.ModuleList(convs("encoder", level, inputs[level]) for level in range(depth))
        self.pools = nn.ModuleList(_POOLS[dim](step) for step in steps)
        self.bottleneck = convs("bottleneck", depth, inputs[depth])
        self.decoder = nn.ModuleList(map(decoder_level, range(depth)))
        self.head = CONVS[dim](widths[0], num_classes * fold**dim, 1)
        self.coarse_heads = nn.ModuleList(
            CONVS[dim](widths[level], num_classes * fold**dim, 1) for level in range(1, deep_supervision + 1)
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, *S) of an input (B, C, *S).

        With deep supervision in training: a list of them, the finest first, level i of sizes S / stride_i, rounded up.
        """
        size = x.shape[2:]
        x = pad_far_ends(x, self.level_strides[-1])
        if self.fold > 1:
            x = space_to_depth(x, self.fold)
        skips = []
        for level, pool in zip(self.encoder, self.pools, strict=True):
            x = level(x)
            skips.append(x)
            x = pool(x)
        x = self.bottleneck(x)
        decoded: list[Tensor] = []
        for level, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = level(x, skip)
            decoded.insert(0, x)
        finest = self._logits(self.head, x, size)
        if not (self.training and self.coarse_heads):
            return finest
        scales = [finest]
        for coarse, head in enumerate(self.coarse_heads, start=1):
            steps = self.level_strides[coarse]
            smaller = [-(-length * self.fold // step) for length, step in zip(size, steps, strict=True)]
            scales.append(self._logits(head, decoded[coarse], torch.Size(smaller)))
        return scales

    def _logits(self, head: nn.Module, x: Tensor, size: torch.Size) -> Tensor:
        logits: Tensor = head(x)
        if self.fold > 1:
            logits = depth_to_space(logits, self.fold)
        if logits.shape[2:] != size:
            logits = logits[(slice(None), slice(None), *map(slice, size))]
        return logits


def _steps(strides: Sequence[Sequence[int]] | None, depth: int, dim: int) -> list[tuple[int, ...]]:
    """What each pooling divides the axes by."""
    if strides is None:
        return [(2,) * dim] * depth
    if len(strides) != depth or any(len(step) != dim for step in strides):
        raise ValueError(f"strides must have {dim} numbers for each of {depth} poolings (depth), got {strides!r}")
    for step in strides:
        check_positive(**{f"strides[{level}]": number for level, number in enumerate(step)})
    return [tuple(step) for step in strides]


def _cumulated(fold: int, steps: Sequence[Sequence[int]], dim: int) -> list[tuple[int, ...]]:
    cumulated = [(fold,) * dim]
    for step in steps:
        cumulated.append(tuple(a * b for a, b in zip(cumulated[-1], step, strict=True)))
    return cumulated
