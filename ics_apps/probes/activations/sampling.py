"""Which elements of a layer's output are read: a fixed strided sample in memory order.

Only positions and copies live here; the statistics of what was read are in `moments`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Knuth's multiplier (2^32 / golden ratio): successive turns land far apart, with no random generator.
GOLDEN: Final = 2_654_435_761
# Outputs nested deeper than this are not searched.
MAX_DEPTH: Final = 5


@dataclass(frozen=True, slots=True)
class Positions:
    """Where a sample lies: elements `offset + k * stride`, k = 0..count-1, of the flattened tensor.

    Attributes:
        count: number of elements read.
        stride: step between them, coprime with the number of elements and so with C, W and H*W.
        offset: first element.
        dense: the flattened order is the memory order; otherwise it is the logical (row-major) order.
        inner: elements between two neighbours along the channel axis, in that order.
        channels: length of the channel axis, 1 if there is none.
    """

    count: int
    stride: int
    offset: int
    dense: bool
    inner: int
    channels: int

    def channel_index(self) -> NDArray[np.int64]:
        """The channel of each element read, `(count,)`."""
        return _channel_index(self)


def locate(x: Tensor, size: int, turn: int = 0, axis: int | None = None) -> Positions:
    """Choose at most `size` evenly spaced elements of `x`.

    The stride is the smallest integer >= numel / size that is coprime with numel, so that every channel, row and column
    is visited; the offset is `turn * 2654435761` modulo the room that is left, so that successive turns read other
    elements and no random generator is touched.

    Args:
        x: any strided tensor with at least one element.
        size: the most elements to read, >= 1.
        turn: number of the sample, >= 0.
        axis: the channel axis, None if there is none.

    Returns:
        The positions.

    Example:
        >>> locate(torch.zeros(2, 3, 8, 8), size=100, axis=1)
        Positions(count=76, stride=5, offset=0, dense=True, inner=64, channels=3)

    Reference: ours.
    """
    return places_of(x.shape, x.stride(), size, turn, axis)


def places_of(
    shape: torch.Size, strides: tuple[int, ...], size: int, turn: int = 0, axis: int | None = None
) -> Positions:
    """The same for any tensor of this shape and these strides."""
    places, room = _places(shape, strides, size, axis)
    # Not `replace`, which takes longer than all the rest.
    return Positions(places.count, places.stride, turn * GOLDEN % room, places.dense, places.inner, places.channels)


def read(x: Tensor, where: Positions) -> Tensor:
    """The elements of `x` at `where`, `(count,)`: a view if the tensor is dense, else a copy of these elements only.

    Args:
        x: the tensor that `where` was made for.
        where: positions from `locate`.

    Returns:
        The sample, in the dtype of `x`, detached.

    Example:
        >>> x = torch.arange(12.0).reshape(3, 4)
        >>> read(x, locate(x, size=4)).tolist()
        [0.0, 5.0]

    Reference: ours.
    """
    x = x.detach()
    start = x.storage_offset()
    if where.dense:
        return x.as_strided((where.count,), (where.stride,), start + where.offset)
    place = torch.arange(where.count, device=x.device) * where.stride + where.offset
    memory = torch.zeros_like(place)
    span = 1
    for length, step in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        memory += place % length * step
        place = place.div(length, rounding_mode="floor")
        span += (length - 1) * step
    return torch.as_strided(x, (span,), (1,), start)[memory]


def first_tensor(output: Any) -> Tensor | None:
    """The first readable floating-point tensor in what a layer returned.

    Tuples, lists, mappings, dataclasses and packed sequences are searched in their own order, so an RNN's
    `(output, state)` gives `output` and a transformers `ModelOutput` its first field.

    Args:
        output: anything a `forward` returns.

    Returns:
        The tensor, or None if there is none that can be read (integers, sparse, nested, quantised, sharded, empty).

    Example:
        >>> first_tensor({"ids": torch.arange(3), "hidden": (torch.ones(2), torch.zeros(2))})
        tensor([1., 1.])

    Reference: ours.
    """
    return _search(output, 0)


@functools.lru_cache(maxsize=2)  # a convolution, its norm and its activation are read at the same places
def _channel_index(where: Positions) -> NDArray[np.int64]:
    place = np.arange(where.count) * where.stride + where.offset
    return place // where.inner % where.channels


@functools.lru_cache(maxsize=1024)  # layers keep their shapes from step to step
def _places(shape: torch.Size, strides: tuple[int, ...], size: int, axis: int | None) -> tuple[Positions, int]:
    """The places of turn 0, and how many offsets there are."""
    total = math.prod(shape)
    stride = 1
    if total > size:
        stride = -(-total // size)
        while math.gcd(stride, total) != 1:
            stride += 1
    count = total // stride
    dense = _is_dense(shape, strides)
    inner, channels = 1, 1
    if axis is not None:
        channels = shape[axis]
        inner = strides[axis] if dense else math.prod(shape[axis % len(shape) + 1 :])
    return Positions(count, stride, 0, dense, max(inner, 1), channels), total - (count - 1) * stride


def _search(value: Any, depth: int) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if _is_readable(value) else None
    if depth >= MAX_DEPTH:
        return None
    for item in _items(value):
        found = _search(item, depth + 1)
        if found is not None:
            return found
    return None


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (tuple, list)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (getattr(value, field.name) for field in dataclasses.fields(value))
    return ()


def _is_readable(x: Any) -> bool:
    return bool(
        x.is_floating_point()
        and x.layout == torch.strided
        and not x.is_nested
        and x.device.type != "meta"
        and x.numel() > 0
        and (type(x) is Tensor or not is_traceable_wrapper_subclass(x))
        # Dynamo cannot trace that question, and traces no such tensors here.
        and (torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(x))
    )


def _is_dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether the elements fill one stretch of memory without gaps or overlap, in any order of the axes."""
    expected = 1
    for step, length in sorted(zip(strides, shape, strict=True)):
        if length == 1:
            continue
        if step != expected:
            return False
        expected *= length
    return True
