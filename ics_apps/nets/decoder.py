"""How a decoder's level joins its two streams: skip and up, normalised or gated, then convolved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from ics_apps.nets.arguments import check_choice
from ics_apps.nets.attention_gate import AttentionGate, GatedConcat
from ics_apps.nets.conv_blocks import Block, ConvPair, UpConv
from ics_apps.nets.sites import Site, norms_by_site
from ics_apps.norms import NormalizedConcat, NormError, NormSpec
from ics_apps.norms.layers.weight import attach_weight_norm

Streams = Literal["none", "skip", "up", "both"]
Attention = Literal["none", "gate"]


class DecoderLevel(nn.Module):
    """Upsample, join the skip stream, convolve."""

    def __init__(self, up: UpConv, concat: NormalizedConcat, convs: ConvPair) -> None:
        super().__init__()
        self.up = up
        self.concat = concat
        self.convs = convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join the upsampled lower level `x` with the `skip` stream of this one."""
        joined: Tensor = self.convs(self.concat(skip=skip, up=self.up(x)))
        return joined


def decoder_norms(
    sites: tuple[str, ...],
    norm: NormSpec,
    given: Mapping[str, NormSpec],
    *,
    normalize_streams: str,
    attention: str,
    block: Block,
) -> dict[str, NormSpec]:
    """The norm of every site; a stream that is not normalised has 'none'.

    Args:
        sites: The sites of the net, `skip`, `up`, `gate` and `shortcut` among them.
        norm: The norm of the sites that are not given.
        given: Norms by site.
        normalize_streams: Which streams are normalised.
        attention: "gate" for a net with gates.
        block: "residual" for a net with shortcuts.

    Raises:
        NormError: A site is unknown, or the net as asked for does not have it.
        ValueError: A choice is unknown.
    """
    check_choice("normalize_streams", normalize_streams, get_args(Streams))
    check_choice("attention", attention, get_args(Attention))
    norms = norms_by_site(norm, given, sites)
    absent = {
        stream: f"normalize_streams={normalize_streams!r} leaves as it is; "
        f"set normalize_streams to {stream!r} or 'both'"
        for stream in ("skip", "up")
        if normalize_streams not in (stream, "both")
    }
    if attention == "none":
        absent["gate"] = "attention='none' leaves out; set attention to 'gate'"
    if block == "plain":
        absent["shortcut"] = "block='plain' leaves out; set block to 'residual'"
    for site, why in absent.items():
        if site in given:
            raise NormError(f"site_norms gives a norm for {site!r}, which {why}")
        norms[site] = "none"
    return norms


def join_streams(
    up: UpConv, channels: Mapping[str, int], norms: Mapping[str, NormSpec], gate: Site | None, label: str, dim: int
) -> NormalizedConcat:
    """The concatenation (skip, up) of one level.

    Args:
        up: Where the up stream comes from; a norm on weights acts there.
        channels: Of `skip` and `up`.
        norms: The norms of these two, among others.
        gate: Site of the norms of the attention gate; None for no gate.
        label: Beginning of error messages, as in "decoder level 0".
        dim: Number of space axes.

    Raises:
        NormError: A norm cannot be built, or acts on a weight where there is none.
    """
    specs = {name: norms[name] for name in ("skip", "up")}
    try:
        if gate is None:
            concat = NormalizedConcat(channels, specs, dim)
        else:
            concat = GatedConcat(channels, specs, dim, AttentionGate(channels["skip"], channels["up"], gate))
    except NormError as error:
        raise NormError(f"{label}, {error}") from error
    # The up stream comes straight out of a convolution, the skip stream out of an activation.
    for stream, layer in (("skip", None), ("up", up[0])):
        try:
            attach_weight_norm(layer, concat.get_submodule(stream))
        except NormError as error:
            raise NormError(f"{label}, stream {stream!r}: {error}") from error
    return concat
