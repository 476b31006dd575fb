"""The buffer in which samples wait for their reduction: a few rows on one device, allocated once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ics_apps.probes.moments import NO_BOUNDS, WIDTH, marks, reduce_rows
from ics_apps.probes.sampling import Positions

Bounds = tuple[float, float]

# Values reduced together: torch wakes its threads from 32,768 on, which costs more than it saves here (and waits for
# them when the machine is busy); 112 kB stay in a CPU's cache and bound the memory.
BLOCK_VALUES: Final = 7 * 4096


@dataclass(slots=True)
class Reading:
    """One output that was read.

    Attributes:
        index: number of the layer.
        call: which forward of the layer in this step.
        where: the places read; channels count only if `has_channels`.
        has_channels: the output has a channel axis.
        vectors: small tensors to be fetched together with the reduced figures.
        fetched: the same on the host, after `Block.fetch`.
    """

    index: int
    call: int
    where: Positions
    has_channels: bool
    vectors: dict[str, Tensor] = field(default_factory=dict)
    fetched: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class Block:
    """A few rows of samples on one device, allocated once, reduced when full.

    Args:
        device: where the samples are.
        size: values in a row.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        rows = max(1, BLOCK_VALUES // size)
        # A first forward under inference_mode must not make these inference tensors, which nobody may write later.
        with torch.inference_mode(False):
            self._samples = torch.empty(rows, size, dtype=torch.float32, device=device)
            self._marks = torch.tensor([marks(NO_BOUNDS)] * rows, dtype=torch.float32, device=device)
        self._rows = self._samples.unbind(0)
        self._known_bounds: list[Bounds] = [NO_BOUNDS] * rows  # what `_marks` was made of
        self._used = 0
        self._reduced: list[Tensor] = []
        self._readings: list[Reading] = []

    def add(self, reading: Reading, sample: Tensor, bounds: Bounds = NO_BOUNDS) -> Tensor:
        """Copy a sample in.

        Args:
            reading: what it is.
            sample: its values, any floating dtype; cast to float32 here.
            bounds: values from which on the activation is saturated.

        Returns:
            The row that holds it, valid until the next `add`.
        """
        if self._used == len(self._rows):
            self._reduce()
        target = self._rows[self._used]
        target[: reading.where.count].copy_(sample)
        target[reading.where.count :].fill_(math.nan)
        if bounds != self._known_bounds[self._used]:
            self._known_bounds[self._used] = bounds
            for place, value in enumerate(marks(bounds)):
                self._marks[self._used, place].fill_(value)
        self._readings.append(reading)
        self._used += 1
        return target

    def fetch(self) -> tuple[NDArray[np.float32], list[Reading]]:
        """Bring everything to the host with one transfer, and start again empty.

        Returns:
            The reduced rows, `(R, WIDTH)`, and the readings they belong to, with `fetched` filled.
        """
        self._reduce()
        readings = self._readings
        vectors = [vector.flatten().float() for reading in readings for vector in reading.vectors.values()]
        reduced = [rows.flatten() for rows in self._reduced]
        packed: NDArray[Any] = torch.cat([*reduced, *vectors]).cpu().numpy() if readings else np.empty(0, np.float32)
        place = len(readings) * WIDTH
        rows = packed[:place].reshape(-1, WIDTH)
        for reading in readings:
            for name, vector in reading.vectors.items():
                reading.fetched[name] = packed[place : place + vector.numel()]
                place += vector.numel()
            reading.vectors.clear()
        self.clear()
        return rows, readings

    def clear(self) -> None:
        """Forget all rows and results."""
        self._used, self._reduced, self._readings = 0, [], []

    def _reduce(self) -> None:
        if self._used:
            self._reduced.append(reduce_rows(self._samples[: self._used], self._marks[: self._used]))
            self._used = 0
