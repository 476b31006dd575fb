"""A U-Net whose encoder is any of timm's nets, with its norms converted. The decoder's levels are those of `UNet`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ics_apps.nearest import did_you_mean
from ics_apps.nets.arguments import check_choice, check_positive
from ics_apps.nets.conv_blocks import CONVS, Activation, Block, ConvPair, Order, Style, UpConv, Upsample
from ics_apps.nets.decoder import Attention, DecoderLevel, Streams, decoder_norms, join_streams
from ics_apps.nets.padding import pad_far_ends
from ics_apps.nets.sites import Site
from ics_apps.norms import NormError, NormSpec, convert_norms

KEEP = "keep"
SITES = ("encoder", "decoder", "skip", "up", "shortcut", "gate")


class TimmUNet(nn.Module):
    """A U-Net for images on a timm encoder: its feature maps are the skip streams.

    The encoder gives maps of strides r_0 < r_1 < ... (2, 4, 8, 16, 32 for most convolutional nets, 4, 8, 16, 32 for
    convnext and swin). A decoder's level of stride r has min(width * r, max_width) channels:

        encoder     timm.create_model(encoder, features_only=True), norms converted by `convert_norms`
        decoder.i   up, concat (skip of stride r_i, up), convs
        refine      from stride r_0 to 1 by doublings, each up and convs; there are no maps to join
        head        1x1 conv width -> num_classes

    Any input size works that the encoder allows, as in `UNet`; some transformers have a fixed size
    (`encoder_options={img_size: 256}`, for swin also `strict_img_size: false`).

    Args:
        in_channels: C of the input (B, C, H, W); the encoder's first layer, pretrained or not, is adapted to it.
        num_classes: K of the output logits (B, K, H, W).
        dim: 2: timm's nets are for images.
        norm: The norm of every site that `site_norms` does not name, the encoder's included.
        encoder: Name of a timm model.
        pretrained: True for timm's own weights (needs a network or timm's cache), or a local file of a state dict of
            this timm model (.pth, .safetensors).
        encoder_options: More arguments of `timm.create_model`, such as `out_indices` or `drop_path_rate`.
        width: Channels of the decoder at the input's resolution.
        max_width: Upper bound of the decoder's channels.
        site_norms: Norms of single sites: `encoder` ("keep" leaves timm's), `decoder`, and `skip`, `up`, `shortcut`,
            `gate` as in `UNet`.
        normalize_streams: As in `UNet`, like `block`, `attention`, `order`, `activation` and `upsample`.
        block: Of the decoder.
        attention: Gates of the skip streams.
        order: Of the decoder.
        activation: Of the decoder.
        upsample: Of the decoder.

    Attributes:
        stride: The largest of the encoder's strides.

    Raises:
        NormError: A norm cannot be built or take the place of the encoder's; the message names the layers.
        ValueError: The encoder is unknown or its weights cannot be loaded, or an argument is out of its range.

    Example:
        >>> import torch
        >>> net = TimmUNet(1, 2, norm="group", encoder="resnet10t", width=8).eval()
        >>> net(torch.zeros(1, 1, 33, 50)).shape, net.stride
        (torch.Size([1, 2, 33, 50]), 32)

    Reference: Wightman 2019 (timm, `features_only`); Iakubovskii 2019 (segmentation_models_pytorch) for the form.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dim: int = 2,
        norm: NormSpec = "batch",
        *,
        encoder: str = "resnet18",
        pretrained: bool | Path = False,
        encoder_options: dict[str, Any] | None = None,
        width: int = 16,
        max_width: int = 256,
        site_norms: dict[str, NormSpec] | None = None,
        normalize_streams: Streams = "none",
        block: Block = "plain",
        attention: Attention = "none",
        order: Order = "conv-norm-act",
        activation: Activation = "relu",
        upsample: Upsample = "nearest",
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes, width=width, max_width=max_width)
        if dim != 2:
            raise ValueError(f"dim is {dim!r}, but timm's encoders are for images (dim 2); take UNet for other data")
        check_choice("upsample", upsample, get_args(Upsample))
        style = Style(block, order, activation)
        norms = decoder_norms(
            SITES, norm, site_norms or {}, normalize_streams=normalize_streams, attention=attention, block=block
        )

        self.encoder = _encoder(encoder, in_channels, pretrained, encoder_options or {})
        if norms["encoder"] != KEEP:
            _convert(self.encoder, norms["encoder"], encoder)
        channels, strides = self.encoder.feature_info.channels(), self.encoder.feature_info.reduction()
        self._channels_last = str(getattr(self.encoder, "output_fmt", "")).endswith("NHWC")
        self.stride = max(strides)

        def site(name: str, level: int) -> Site:
            return Site(f"{name} level {level}", norms[name], dim)

        def convs(level: int, before: int, after: int) -> ConvPair:
            return style.make(before, after, site("decoder", level), site("shortcut", level))

        def up(level: int, before: int, after: int, step: int) -> UpConv:
            return UpConv(before, after, site("up", level), upsample, (step, step))

        widths = [min(width * stride, max_width) for stride in strides]
        inputs = [*widths[1:-1], channels[-1]]
        levels = []
        for level in range(len(strides) - 1):
            to_level = up(level, inputs[level], widths[level], strides[level + 1] // strides[level])
            streams = {"skip": channels[level], "up": widths[level]}
            gate = site("gate", level) if attention == "gate" else None
            concat = join_streams(to_level, streams, norms, gate, f"decoder level {level}", dim)
            levels.append(DecoderLevel(to_level, concat, convs(level, sum(streams.values()), widths[level])))
        self.decoder = nn.ModuleList(levels)

        refine: list[nn.Module] = []
        before, stride = widths[0] if levels else channels[0], strides[0]
        # Without a stream to meet, this upsampling takes no norm of its own.
        plain = Site("refine", "none", dim)
        while stride > 1:
            step = 2 if stride % 2 == 0 else stride
            stride //= step
            after = min(width * stride, max_width)
            refine += [UpConv(before, after, plain, upsample, (step, step)), convs(0, after, after)]
            before = after
        self.refine = nn.Sequential(*refine)
        self.head = CONVS[dim](before, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, C, H, W)."""
        height, width = x.shape[2:]
        maps = self.encoder(pad_far_ends(x, (self.stride, self.stride)))
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        y = maps[-1]
        for level, skip in zip(reversed(self.decoder), reversed(maps[:-1]), strict=True):
            y = level(y, skip)
        logits: Tensor = self.head(self.refine(y))
        return logits[:, :, :height, :width]


def _encoder(name: str, in_channels: int, pretrained: bool | Path, options: dict[str, Any]) -> Any:
    import timm  # takes a second

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"encoder {name!r} is no model of timm{did_you_mean(name, timm.list_models())}")
    if not isinstance(pretrained, bool):
        if not Path(pretrained).is_file():
            raise ValueError(f"pretrained is {str(pretrained)!r}, which is no file; give a state dict, true or false")
        options = {"pretrained_cfg_overlay": {"file": str(pretrained)}, **options}
    try:
        made = timm.create_model(
            name, features_only=True, in_chans=in_channels, pretrained=pretrained is not False, **options
        )
        if not isinstance(pretrained, bool):
            _refuse_nothing_taken(made, timm.models.load_state_dict(str(pretrained), weights_only=True))
    except (AttributeError, TypeError, AssertionError) as error:
        raise ValueError(f"timm cannot build {name!r} as an encoder of {in_channels} channels: {error}") from error
    except Exception as error:  # the hub's and the file formats' errors have no common class
        if pretrained is False:
            raise
        source = "from the network" if pretrained is True else f"from {pretrained}"
        raise ValueError(
            f"weights of {name!r} could not be loaded {source} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "give `pretrained` a local file of its state dict, or false to start from random weights"
        ) from error
    return made


def _refuse_nothing_taken(encoder: nn.Module, file: Mapping[str, Tensor]) -> None:
    """Of a file of another net timm takes nothing, silently."""
    kernels = [tensor for tensor in encoder.parameters() if tensor.dim() > 1]
    if not any(a.shape == b.shape and torch.equal(a, b) for a in kernels for b in file.values()):
        raise LookupError(f"none of its {len(file)} tensors is one of this encoder")


def _convert(encoder: nn.Module, norm: NormSpec, name: str) -> None:
    try:
        convert_norms(encoder, norm)
    except NormError as error:
        raise NormError(f"encoder {name!r}: {error}; site_norms={{'encoder': 'keep'}} leaves timm's norms") from error
