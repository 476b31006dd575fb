"""One output that was read, while its values wait on the device, and what becomes of it on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ics_apps.probes.activations.arena import Arena, Slot
from ics_apps.probes.activations.norm_state import Grid, batch_noise, running_gap, running_var_gap
from ics_apps.probes.activations.records import SATURATED_INPUT, Record
from ics_apps.probes.activations.sampling import Positions
from ics_apps.probes.selection import Layer

Chunks = Sequence[NDArray[np.float32]]
Vectors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Values of a batch norm's output that can be compared in pairs.

    Attributes:
        grid: the places read.
        slot: where the values wait.
        batch: samples that the statistics run over.
        per_channel: positions of one sample.
    """

    grid: Grid
    slot: Slot
    batch: int
    per_channel: int


@dataclass(slots=True)
class Reading:
    """One output that was read.

    Attributes:
        index: number of the layer.
        tag: tag under which it ran.
        call: which forward of the layer under this tag.
        dtype: name of the output's dtype.
        numel: elements of the output.
        device: where it is.
        where: the places read; channels count only if `has_channels`.
        has_channels: the output has a channel axis.
        slot: where the values wait.
        vectors: small tensors that are fetched with them.
        pairs: of a batch norm in training: values that can be compared in pairs; weight and bias are among the vectors.
        gradient: where the values of the gradient wait.
    """

    index: int
    tag: str
    call: int
    dtype: str
    numel: int
    device: torch.device
    where: Positions
    has_channels: bool
    slot: Slot
    vectors: dict[str, Tensor] = field(default_factory=dict)
    pairs: Pairs | None = None
    gradient: Slot | None = None


def fetched(readings: Sequence[Reading], arenas: Mapping[torch.device, Arena], layers: Sequence[Layer]) -> list[Record]:
    """The readings on the host, in their order: one transfer a device."""
    chunks: dict[torch.device, Chunks] = {}
    vectors: dict[int, NDArray[np.float32]] = {}
    for device, arena in arenas.items():
        waiting = [vector for reading in readings if reading.device == device for vector in reading.vectors.values()]
        chunks[device], arrays = arena.fetch(waiting)
        vectors.update(zip(map(id, waiting), arrays, strict=True))
    return [
        _record(
            reading,
            layers[reading.index],
            chunks[reading.device],
            {name: vectors[id(vector)] for name, vector in reading.vectors.items()},
        )
        for reading in readings
    ]


def _record(reading: Reading, layer: Layer, chunks: Chunks, vectors: Vectors) -> Record:
    values, where = _values(chunks, reading.slot), reading.where
    channel = where.channel_index() if reading.has_channels else None
    scalars: dict[str, float] = {}
    if SATURATED_INPUT in vectors:
        scalars[SATURATED_INPUT] = float(vectors[SATURATED_INPUT][0])
    if "after" in vectors:
        scalars.update(_gaps(layer.module, vectors))
    if reading.pairs is not None:
        scalars["batch_noise"] = _noise(reading.pairs, chunks, vectors)
    return Record(
        reading.index,
        reading.tag,
        reading.call,
        reading.dtype,
        reading.numel,
        where.channels,
        values,
        channel,
        np.empty(0, np.float32) if reading.gradient is None else _values(chunks, reading.gradient),
        scalars,
    )


def _noise(pairs: Pairs, chunks: Chunks, vectors: Vectors) -> float:
    chosen = slice(pairs.grid.channels.start, pairs.grid.channels.stop, pairs.grid.channels.step)
    affine = {name: vectors[key][chosen] for name, key in (("gamma", "weight"), ("beta", "bias")) if key in vectors}
    values = _values(chunks, pairs.slot).reshape(pairs.grid.shape)
    return batch_noise(values, pairs.batch, pairs.per_channel, **affine)


def _gaps(module: Any, vectors: Vectors) -> dict[str, float]:
    # momentum None is torch's plain average over all batches.
    momentum = float(1 / vectors["batches"][0] if "batches" in vectors else module.momentum)
    eps = float(getattr(module, "eps", 1e-5))
    old, new = vectors["before"], vectors["after"]  # means, then variances
    channels = len(old) // 2
    return {
        "running_gap": running_gap(old[:channels], old[channels:], new[:channels], momentum, eps),
        "running_var_gap": running_var_gap(old[channels:], new[channels:], momentum, eps),
    }


def _values(chunks: Chunks, slot: Slot) -> NDArray[np.float32]:
    return chunks[slot.chunk][slot.start : slot.start + slot.count]
