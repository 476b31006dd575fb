"""Blocks built from norms: streams normalised one by one, then concatenated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ics_apps.nearest import did_you_mean
from ics_apps.norms.engine.axes import channel_axis
from ics_apps.norms.engine.own_gradient import is_watched
from ics_apps.norms.layers.sample import channels_last_of
from ics_apps.norms.registry import Dim, NormError, NormSpec, make_norm


class NormalizedConcat(nn.Module):
    """Normalise each stream by itself, then concatenate along the channels: cat(norm_1(x_1), ..., norm_k(x_k)).

    A convolution behind a concatenation sees the larger stream louder; a norm per stream sets their ratio. For norms
    that treat channels one by one (`batch`, `instance`) this is the same function as one norm behind the concatenation;
    for `group` only if no group straddles the border of two streams; for norms over all channels never.
    The children are named by their streams, so a monitor finds `...concat.skip` and `...concat.up`.

    Args:
        channels: Channels of each stream, in the order of concatenation.
        norms: One spec for all streams, or a dict from each stream's name to its spec; `"none"` leaves a stream as is.
        dim: As in `make_norm`.

    Attributes:
        out_channels: The sum of the streams' channels.

    Raises:
        NormError: No streams, a stream without a norm or the reverse, a name that a module cannot have, or a bad spec.

    Example:
        >>> concat = NormalizedConcat({"skip": 4, "up": 8}, {"skip": "instance", "up": "none"})
        >>> concat(skip=torch.rand(2, 4, 5, 5), up=torch.rand(2, 8, 5, 5)).shape
        torch.Size([2, 12, 5, 5])
        >>> concat.skip
        InstanceNorm(4, eps=1e-05, affine=True)

    Reference: Liu 2015 (1506.04579), section 3.2, for the L2 form; per-stream choice of norm: ours.
    """

    def __init__(
        self, channels: Mapping[str, int], norms: Mapping[str, NormSpec] | NormSpec = "none", dim: Dim = 2
    ) -> None:
        super().__init__()
        if not channels:
            raise NormError("a concatenation needs at least one stream, got none")
        self.streams = tuple(channels)
        self.out_channels = sum(channels.values())
        self._axis = channel_axis(dim)
        specs = _specs_by_stream(self.streams, norms)
        for stream, width in channels.items():
            if not stream.isidentifier() or hasattr(self, stream):
                raise NormError(f"{stream!r} cannot name a stream: it is no identifier or an attribute of every module")
            try:
                self.add_module(stream, make_norm(specs[stream], width, dim))
            except NormError as error:
                raise NormError(f"stream {stream!r}: {error}") from error

    def forward(self, *streams: Tensor, **named: Tensor) -> Tensor:
        """Concatenate streams given by name, or in the order of `streams`."""
        if named:
            if streams or named.keys() != set(self.streams):
                raise ValueError(f"expected the streams {self.streams}, got {len(streams)} unnamed and {tuple(named)}")
            streams = tuple(named[name] for name in self.streams)
        elif len(streams) != len(self.streams):
            raise ValueError(f"expected the streams {self.streams}, got {len(streams)} unnamed")
        return torch.cat(self.normalized(*streams), dim=self._axis)

    def normalized(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """The streams as they are concatenated, each through its norm."""
        norms = map(self.get_submodule, self.streams)
        parts = ((norm, norm(x)) for norm, x in zip(norms, streams, strict=True))
        return tuple(y if isinstance(norm, nn.Identity) else _with_dense_gradient(y) for norm, y in parts)


def _with_dense_gradient(part: Tensor) -> Tensor:
    """The same values; on a CPU their gradient comes without the gaps of a slice of the whole concatenation.

    torch's batch norm takes a gradient with gaps on a route that is 20 times slower (channels_last, 16 channels).
    """
    if part.device.type != "cpu" or not part.requires_grad or is_watched():
        return part
    dense: Tensor = _DenseGradient.apply(part)
    return dense


class _DenseGradient(torch.autograd.Function):
    """The identity, whose gradient is copied into the layout of its values."""

    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        return part.view_as(part)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        channels_last = gradient.dim() > 3 and gradient.stride(1) == 1
        return gradient.contiguous(
            memory_format=channels_last_of(gradient) if channels_last else torch.contiguous_format
        )


def _specs_by_stream(streams: tuple[str, ...], norms: Mapping[str, NormSpec] | NormSpec) -> Mapping[str, NormSpec]:
    if not isinstance(norms, Mapping):
        return dict.fromkeys(streams, norms)
    if "name" in norms:
        return {stream: dict(norms) for stream in streams}
    for stream in norms:
        if stream not in streams:
            hint = did_you_mean(stream, streams)
            raise NormError(f"a norm is given for the unknown stream {stream!r}{hint} Streams: {', '.join(streams)}")
    for stream in streams:
        if stream not in norms:
            raise NormError(
                f"no norm is given for the stream {stream!r}; write {stream!r}: 'none' to leave it as it is"
            )
    return norms
