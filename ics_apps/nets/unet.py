"""The U-Net in one, two or three dimensions, with a norm chosen for each site. No losses, no Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.nets.sites import Site, norms_by_site
from ics_apps.nets.space_to_depth import depth_to_space, space_to_depth
from ics_apps.norms import NormalizedConcat, NormError, NormSpec
from ics_apps.norms.layers.weight import attach_weight_norm

Order = Literal["conv-norm-act", "conv-act-norm"]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]
Streams = Literal["none", "skip", "up", "both"]
Upsample = Literal["transpose", "nearest"]

SITES = ("encoder", "bottleneck", "decoder", "skip", "up")

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
# Not in place: hooks may hold the tensor that an in-place activation would overwrite.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class UNet(nn.Module):
    """U-Net: `depth` poolings down, as many upsamplings back, each level joined by its skip stream.

    Level i works at 1 / 2^i of the input's resolution with w_i = min(width * 2^i, max_width) channels:

        encoder.i   (i < depth)  conv w_{i-1} -> w_i, conv w_i -> w_i, then max-pooling by 2
        bottleneck  (i = depth)  conv w_{i-1} -> w_i, conv w_i -> w_i
        decoder.i                up w_{i+1} -> w_i, concat (skip, up) = 2 w_i, conv 2 w_i -> w_i, conv w_i -> w_i
        head                     1x1 conv w_0 -> num_classes

    with 3-wide convolutions, each with a norm and an activation. `decoder.i` has the resolution of `encoder.i`, so
    `decoder.0` is the last to run.

    The two streams of a concatenation need not be equally loud: the skip comes normalised and rectified out of the
    encoder, the up stream raw out of a transposed convolution, and the larger one dominates the next layer.
    `normalize_streams` puts a norm on either or both before they meet. The convolution and norm behind the
    concatenation remove the streams' common scale anyway, so it is their ratio that this changes.

    Any input size works: sizes that 2^depth does not divide are padded at their far ends by repeating the border, and
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
        site_norms: Norms of single sites: `encoder`, `bottleneck`, `decoder`, and `skip`, `up` if they are normalised.
        normalize_streams: Which streams are normalised before the concatenation.
        order: Norm before or behind the activation.
        activation: The activation of every convolution; left out where the norm contains one (`filter_response`).
        upsample: Transposed convolution (kernel 2, stride 2), or 1x1 convolution and nearest-neighbour doubling.
        fold: r: the net works at 1 / r of the resolution on blocks of r^dim positions folded into the channels, and
            unfolds the logits. Few wide layers instead of many narrow ones: faster at equal accuracy on large, simple
            images; 1 is the plain U-Net.

    Attributes:
        stride: fold * 2^depth, the size in input positions of one position of the bottleneck.

    Raises:
        NormError: A norm cannot be built (the message names site and level), or a site is unknown or not normalised.
        ValueError: Another argument is out of its range.

    Example:
        >>> import torch
        >>> net = UNet(1, 2, norm="group", width=8, depth=2, normalize_streams="both")
        >>> net(torch.zeros(1, 1, 17, 20)).shape
        torch.Size([1, 2, 17, 20])
        >>> [name for name, _ in net.decoder[0].concat.named_children()]
        ['skip', 'up']

    Reference: Ronneberger 2015 (1505.04597); norms by site and by stream: ours.
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
        order: Order = "conv-norm-act",
        activation: Activation = "relu",
        upsample: Upsample = "transpose",
        fold: int = 1,
    ) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, num_classes=num_classes, width=width, depth=depth)
        _check_positive(max_width=max_width, fold=fold)
        _check_choice("dim", dim, tuple(_CONVS))
        _check_choice("order", order, get_args(Order))
        _check_choice("activation", activation, get_args(Activation))
        _check_choice("upsample", upsample, get_args(Upsample))
        norms = _site_norms(norm, site_norms or {}, normalize_streams)
        widths = [min(width * 2**level, max_width) for level in range(depth + 1)]
        inputs = [in_channels * fold**dim, *widths]

        def site(name: str, level: int) -> Site:
            return Site(f"{name} level {level}", norms[name], dim)

        self.dim = dim
        self.fold = fold
        self.stride = fold * 2**depth
        self.encoder = nn.ModuleList(
            ConvPair(inputs[level], widths[level], site("encoder", level), order, activation) for level in range(depth)
        )
        self.pool = _POOLS[dim](2)
        self.bottleneck = ConvPair(inputs[depth], widths[depth], site("bottleneck", depth), order, activation)
        self.decoder = nn.ModuleList(
            DecoderLevel(
                up := UpConv(widths[level + 1], widths[level], site("up", level), upsample),
                _concat(up, widths[level], norms, level, dim),
                ConvPair(2 * widths[level], widths[level], site("decoder", level), order, activation),
            )
            for level in range(depth)
        )
        self.head = _CONVS[dim](widths[0], num_classes * fold**dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, *S) of an input (B, C, *S)."""
        size = x.shape[2:]
        x = self._padded(x)
        if self.fold > 1:
            x = space_to_depth(x, self.fold)
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for level, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = level(x, skip)
        logits: Tensor = self.head(x)
        if self.fold > 1:
            logits = depth_to_space(logits, self.fold)
        if logits.shape[2:] != size:
            logits = logits[(slice(None), slice(None), *map(slice, size))]
        return logits

    def _padded(self, x: Tensor) -> Tensor:
        missing = [-length % self.stride for length in x.shape[2:]]
        if not any(missing):
            return x
        # Far ends only: the pooling grid stays at the origin, so tiles that start at multiples of `stride` agree.
        far_ends = [amount for length in reversed(missing) for amount in (0, length)]
        return F.pad(x, far_ends, mode="replicate")


class ConvPair(nn.Module):
    """Two 3-wide convolutions, each with norm and activation: (B, C_in, *S) -> (B, C_out, *S)."""

    def __init__(self, in_channels: int, out_channels: int, site: Site, order: Order, activation: Activation) -> None:
        super().__init__()
        self.norm_first = order == "conv-norm-act"
        bias = not (self.norm_first and site.absorbs_bias)
        kind = nn.Identity if site.contains_activation else _ACTIVATIONS[activation]
        self.conv1 = _CONVS[site.dim](in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm1 = site.norm(out_channels, self.conv1)
        self.act1 = kind()
        self.conv2 = _CONVS[site.dim](out_channels, out_channels, 3, padding=1, bias=bias)
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


class UpConv(nn.Sequential):
    """Doubling of the resolution with a change of channels: (B, C_in, *S) -> (B, C_out, *2S)."""

    def __init__(self, in_channels: int, out_channels: int, site: Site, upsample: Upsample) -> None:
        bias = not site.absorbs_bias
        if upsample == "transpose":
            super().__init__(_TRANSPOSED[site.dim](in_channels, out_channels, 2, stride=2, bias=bias))
        else:
            # A 1x1 convolution commutes with nearest-neighbour doubling and is 2^dim times cheaper before it.
            conv = _CONVS[site.dim](in_channels, out_channels, 1, bias=bias)
            super().__init__(conv, nn.Upsample(scale_factor=2, mode="nearest"))


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


def _site_norms(norm: NormSpec, given: Mapping[str, NormSpec], normalize_streams: str) -> dict[str, NormSpec]:
    """The norm of every site; a stream that is not normalised has 'none'."""
    _check_choice("normalize_streams", normalize_streams, get_args(Streams))
    norms = norms_by_site(norm, given, SITES)
    for stream in ("skip", "up"):
        if normalize_streams not in (stream, "both"):
            if stream in given:
                raise NormError(
                    f"site_norms gives a norm for {stream!r}, which normalize_streams={normalize_streams!r} leaves "
                    f"as it is; set normalize_streams to {stream!r} or 'both'"
                )
            norms[stream] = "none"
    return norms


def _concat(up: UpConv, width: int, norms: Mapping[str, NormSpec], level: int, dim: int) -> NormalizedConcat:
    # The up stream comes straight out of a convolution, the skip stream out of an activation.
    layers = {"skip": None, "up": up[0]}
    try:
        concat = NormalizedConcat({"skip": width, "up": width}, {name: norms[name] for name in layers}, dim)
    except NormError as error:
        raise NormError(f"decoder level {level}, {error}") from error
    for stream, layer in layers.items():
        try:
            attach_weight_norm(layer, concat.get_submodule(stream))
        except NormError as error:
            raise NormError(f"decoder level {level}, stream {stream!r}: {error}") from error
    return concat


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
