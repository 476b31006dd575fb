"""The memory on a device in which a step's samples wait until they are fetched, all with one transfer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK: Final = 2**13  # values: 32 kB, the samples of 8 layers at 1,024 values each


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a sample lies: in which chunk, from which value on, how many values."""

    chunk: int
    start: int
    count: int


class Arena:
    """Float32 memory in chunks that are allocated once and written anew at each sampled step.

    Example:
        >>> arena = Arena(torch.device("cpu"))
        >>> slot, memory = arena.reserve(3)
        >>> _ = memory.copy_(torch.tensor([1, 2, 3]))
        >>> (host,), _ = arena.fetch([])
        >>> host[slot.start : slot.start + slot.count].tolist()
        [1.0, 2.0, 3.0]
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[Tensor] = []
        self._sizes: list[int] = []
        self._free: list[int] = []  # values left at the end of each chunk

    def reserve(self, count: int) -> tuple[Slot, Tensor]:
        """Memory for `count` values, and where it lies; what is copied there is cast to float32, without waiting."""
        place = next((place for place, free in enumerate(self._free) if free >= count), len(self._chunks))
        if place == len(self._chunks):
            # A first forward under inference_mode must not make an inference tensor, which nobody may write later.
            with torch.inference_mode(False):
                self._chunks.append(torch.empty(max(CHUNK, count), dtype=torch.float32, device=self._device))
            self._sizes.append(max(CHUNK, count))
            self._free.append(max(CHUNK, count))
        start = self._sizes[place] - self._free[place]
        self._free[place] -= count
        return Slot(place, start, count), self._chunks[place].narrow(0, start, count)

    def fetch(
        self, vectors: Sequence[Tensor]
    ) -> tuple[tuple[NDArray[np.float32], ...], tuple[NDArray[np.float32], ...]]:
        """The chunks as far as they are used, and small tensors of the same device, on the host.

        On a CPU the chunks are views, valid until `clear`; from another device everything comes with one transfer.
        """
        sizes = zip(self._chunks, self._sizes, self._free, strict=True)
        used = [chunk[: size - free] for chunk, size, free in sizes]
        if self._device.type == "cpu":
            return tuple(part.numpy() for part in used), tuple(v.flatten().float().numpy() for v in vectors)
        parts = [*used, *(vector.flatten().float() for vector in vectors)]
        if not parts:
            return (), ()
        packed: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        ends = list(itertools.accumulate(part.numel() for part in parts))
        split = tuple(np.split(packed, ends[:-1]))
        return split[: len(used)], split[len(used) :]

    def clear(self) -> None:
        """Give all memory free again; it is kept."""
        self._free = list(self._sizes)
