"""What was read of one forward of one layer, on the host, and how several such readings become one.

Several are one where a recurrent cell runs step by step, and where the ranks of a process group hold parts of a batch.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from ics_apps.norms.distributed import in_group

SATURATED_INPUT: Final = "saturated_input"  # a scalar that stands for the saturated share of the output
_HEADER: Final = 8  # bytes that hold the length of a rank's message


@dataclass(slots=True)
class Record:
    """One reading.

    Attributes:
        index: number of the layer.
        tag: tag under which it ran, "" for none.
        call: which forward of the layer under this tag in the step.
        dtype: name of the output's dtype.
        numel: elements of the output, of which `values` is a sample.
        channels: length of the channel axis, 1 if there is none.
        values: float32 `(n,)`.
        channel: the channel of each value, `(n,)`; None where there is no channel axis.
        gradient: float32 `(g,)`, a sample of the gradient with respect to the output; empty if there was none.
        scalars: figures that are averaged over parts, weighted by `numel`.
    """

    index: int
    tag: str
    call: int
    dtype: str
    numel: int
    channels: int
    values: NDArray[np.float32]
    channel: NDArray[np.integer[Any]] | None
    gradient: NDArray[np.float32]
    scalars: dict[str, float] = field(default_factory=dict)


class Ranks:
    """Brings the records of all ranks to every rank, with one collective operation.

    Every rank has to call it at the same step, with records or without. The message has a fixed capacity, known to all;
    where one rank's records need more, all ranks see it in the headers and send again, once.

    Args:
        device: where the backend wants its tensors: CPU for gloo, the rank's GPU for NCCL.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._capacity = 2**16

    def gather(self, records: list[Record]) -> list[Record]:
        """The records of rank 0, then 1, ...; in a single process, `records`."""
        if not in_group():
            return records
        own = np.frombuffer(pickle.dumps(records), np.uint8)
        while True:
            parts = self._all_gather(own)
            lengths = [int(part[:_HEADER].view(np.int64)[0]) for part in parts]
            if max(lengths) <= self._capacity:
                messages = [part[_HEADER : _HEADER + n].tobytes() for part, n in zip(parts, lengths, strict=True)]
                # The ranks of one run trust each other.
                return [record for message in messages for record in pickle.loads(message)]  # noqa: S301
            self._capacity = 2 ** max(lengths).bit_length()

    def _all_gather(self, message: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        own = np.zeros(_HEADER + self._capacity, np.uint8)
        own[:_HEADER].view(np.int64)[0] = len(message)
        own[_HEADER : _HEADER + len(message)] = message[: self._capacity]
        sent = torch.from_numpy(own).to(self._device)
        parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, sent)
        return [part.cpu().numpy() for part in parts]


def merge(records: Iterable[Record]) -> list[Record]:
    """Join the records of one layer, tag and call, in the order in which the first of each comes.

    The samples are thinned to the lowest density among the parts, so that a part weighs as its output does; where every
    part was read in full, the joint record is that of the joint output.

    Example:
        >>> def part(values, numel):
        ...     return Record(0, "", 0, "float32", numel, 1, np.array(values), None, np.empty(0), {"gap": values[0]})
        >>> (joint,) = merge([part([1.0, 2.0], 2), part([5.0], 2)])
        >>> joint.values.tolist(), joint.numel, joint.scalars
        ([1.0, 5.0], 4, {'gap': 3.0})
    """
    groups: dict[tuple[int, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.index, record.tag, record.call), []).append(record)
    return [_joint(parts) if len(parts) > 1 else parts[0] for parts in groups.values()]


def _joint(parts: Sequence[Record]) -> Record:
    first = parts[0]
    chosen = _thinned([(len(part.values), part.numel) for part in parts])
    values = np.concatenate([part.values[places] for part, places in zip(parts, chosen, strict=True)])
    channel = None
    # Parts of another width (a cell of another size under the same name) have no channels in common.
    if all(part.channel is not None and part.channels == first.channels for part in parts):
        both = zip(parts, chosen, strict=True)
        channel = np.concatenate([part.channel[places] for part, places in both if part.channel is not None])
    of_gradient = _thinned([(len(part.gradient), part.numel) for part in parts])
    gradient = np.concatenate([part.gradient[places] for part, places in zip(parts, of_gradient, strict=True)])
    names = dict.fromkeys(name for part in parts for name in part.scalars)
    return Record(
        first.index,
        first.tag,
        first.call,
        first.dtype,
        sum(part.numel for part in parts),
        first.channels if channel is not None else 1,
        values,
        channel,
        gradient,
        {name: _average(name, parts) for name in names},
    )


def _thinned(parts: Sequence[tuple[int, int]]) -> list[NDArray[np.int64]]:
    """Which values of each part, (values read, elements), to keep, so that all have the lowest density."""
    lowest = min((count / numel for count, numel in parts if count), default=1.0)
    kept = [min(count, round(lowest * numel)) for count, numel in parts]
    return [np.arange(number) * count // max(number, 1) for number, (count, _) in zip(kept, parts, strict=True)]


def _average(name: str, parts: Sequence[Record]) -> float:
    known = [(part.scalars[name], part.numel) for part in parts if not np.isnan(part.scalars.get(name, np.nan))]
    return sum(value * numel for value, numel in known) / sum(numel for _, numel in known) if known else np.nan
