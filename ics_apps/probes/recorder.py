"""Reads the outputs of the watched layers during one step and turns them into one table.

No clock and no file: when to open it and where the table goes is up to the caller.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from ics_apps.probes.block import Block, Reading
from ics_apps.probes.channels import ChannelAxis, SilentChannels
from ics_apps.probes.drift import History, Key
from ics_apps.probes.moments import NO_BOUNDS, WIDTH, FloatArray, running_gap, unpack
from ics_apps.probes.sampling import first_tensor, locate, read
from ics_apps.probes.saturation import tails_of
from ics_apps.probes.taps import Layer, Tap

Table = dict[str, NDArray[Any]]

# Columns of the table in order, without the step and epoch that the caller adds.
COLUMNS: Final[dict[str, str]] = {
    "layer": "object",
    "call": "int16",
    "kind": "object",
    "type": "object",
    "order": "int32",
    "count": "int64",
    **dict.fromkeys(("mean", "std", "rms", "min", "max", "q15", "q50", "q85"), "float32"),
    "zero_fraction": "float32",
    "saturated_fraction": "float32",
    "nonfinite_count": "int64",
    "channels": "int32",
    "dead_channels": "int32",
    **dict.fromkeys(("drift_kl", "drift_w1", "running_gap"), "float32"),
}
MAX_CALLS: Final = 16  # forwards of one layer that are kept apart in a step; later ones are not read


class Recorder:
    """Hooks on the chosen layers, open during sampled steps only.

    Every output is read where it is made, from at most `sample_size` elements, into one small buffer on its device,
    and reduced there; `close` fetches all figures with one transfer. Nothing of the model is written: no weight,
    buffer, gradient, mode or random generator. Outputs are counted per layer and step: `call` 0, 1, ..., at most 16.

    Dead channels are judged over successive samples: a channel is dead when 100 values of it in a row were 0, which by
    the rule of three means that it is active at fewer than 3 % of positions. They are known for activations and streams
    with a channel axis, and -1 elsewhere.

    Args:
        layers: what to watch, from `select_layers`.
        sample_size: elements read of each output at most, >= 64.

    Example:
        >>> from torch import nn
        >>> from ics_apps.probes import select_layers
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> recorder = Recorder(select_layers(model).chosen)
        >>> with recorder:
        ...     recorder.start(turn=0)
        ...     _ = model(-torch.ones(1, 2))
        ...     table = recorder.close()
        >>> table["layer"].tolist(), table["kind"].tolist(), table["count"].tolist()
        (['0', '1'], ['linear', 'activation'], [2, 2])

    Reference: ours.
    """

    def __init__(self, layers: Sequence[Layer], sample_size: int = 4096) -> None:
        if sample_size < 64:
            raise ValueError(f"sample_size is {sample_size}; give at least 64, or the quantiles mean nothing.")
        self.layers = tuple(layers)
        self.open = False
        self.sample_size = sample_size
        self.history = History()
        self._taps = [Tap(layer, index, self) for index, layer in enumerate(self.layers)]
        self._tails = [tails_of(layer.module) if layer.kind == "activation" else None for layer in self.layers]
        self._handles: list[RemovableHandle] = []
        self._blocks: dict[torch.device, Block] = {}
        self._calls = [0] * len(self.layers)
        self._order: dict[str, int] = {}
        self._silent = SilentChannels()
        self._turn = 0
        self._axis = ChannelAxis()
        self._muted: set[int] = set()

    def attach(self) -> None:
        """Put the hooks on; calling it again changes nothing."""
        if not self._handles:
            for tap, layer, tails in zip(self._taps, self.layers, self._tails, strict=True):
                wants_input = (tails is not None and tails.side == "input") or _has_running_statistics(layer.module)
                self._handles.extend(tap.attach(wants_input))

    def detach(self) -> None:
        """Take every hook off and throw away what was read since `start`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.discard()

    def __enter__(self) -> Recorder:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def start(self, turn: int) -> None:
        """Read every forward of the watched layers from now on.

        Args:
            turn: number of the sample; it moves the offset of the strided sample.
        """
        self.discard()
        self._turn = turn
        self.open = True

    def discard(self) -> None:
        """Stop reading and forget what was read since `start`."""
        self.open = False
        self._calls = [0] * len(self.layers)
        self._axis.forget()
        for tap in self._taps:
            tap.stash = None
        for block in self._blocks.values():
            block.clear()

    def close(self) -> Table:
        """Stop reading and fetch the table of what was read since `start`, in the order of reading.

        Returns:
            One array for each of `COLUMNS`; empty if no watched layer ran.
        """
        self.open = False
        parts, readings = [np.empty((0, WIDTH), np.float32)], []
        with torch.no_grad():
            for block in self._blocks.values():
                rows, read_here = block.fetch()
                parts.append(rows)
                readings.extend(read_here)
        self.discard()
        return self._table(readings, np.concatenate(parts))

    def before(self, tap: Tap, args: tuple[Any, ...]) -> None:
        """Keep what the layer is about to overwrite: running statistics, or an input that an in-place layer loses."""
        tails = self._tails[tap.index]
        with torch.no_grad():
            if tails is None:
                module: Any = tap.layer.module
                if module.training:
                    tap.stash = {"old_mean": module.running_mean.clone(), "old_var": module.running_var.clone()}
                return
            x = first_tensor(args)
            if x is not None:
                sample = read(x, locate(x, self.sample_size, self._turn))
                tap.stash = {"saturated": ((sample <= tails.low) | (sample >= tails.high)).sum()}

    def after(self, tap: Tap, output: Any) -> None:
        """Read one output."""
        call = self._calls[tap.index]
        x = first_tensor(output)
        if x is None or call >= MAX_CALLS or tap.index in self._muted:
            return
        self._calls[tap.index] = call + 1
        self._order.setdefault(tap.layer.name, len(self._order))
        try:
            with torch.no_grad():
                self._record(tap, call, x)
        except RuntimeError as error:
            # A tensor of a kind unknown to us must not end a training of days; the layer is given up, aloud.
            self._muted.add(tap.index)
            warnings.warn(f"The monitor cannot read '{tap.layer.name}' and leaves it out: {error}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What the next samples are compared with: plain types and tensors, loads under `weights_only=True`."""
        return {
            "history": self.history.state_dict(),
            "order": dict(self._order),
            "silent": self._silent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; layers that this model does not have are kept but not used."""
        self.history.load_state_dict(state["history"])
        self._order = dict(state["order"])
        self._silent.load_state_dict(state["silent"])

    def _record(self, tap: Tap, call: int, x: Tensor) -> None:
        layer, tails = tap.layer, self._tails[tap.index]
        block = self._blocks.get(x.device)
        if block is None:
            block = self._blocks[x.device] = Block(x.device, self.sample_size)
        axis = self._axis.find(layer, x)
        where = locate(x, self.sample_size, self._turn, axis)
        reading = Reading(tap.index, call, where, axis is not None)
        bounds = (tails.low, tails.high) if tails is not None and tails.side == "output" else NO_BOUNDS
        sample = block.add(reading, read(x, where), bounds)
        if tap.stash is not None:
            reading.vectors.update(tap.stash)
            tap.stash = None
            if tails is None:
                reading.vectors.update(_after_update(layer.module))
        if axis is not None and layer.kind in ("activation", "stream") and where.channels <= self.sample_size:
            reading.vectors["active"] = sample[: where.count] != 0

    def _table(self, readings: Sequence[Reading], rows: NDArray[np.float32]) -> Table:
        figures = unpack(rows)
        kept, grid = figures.pop("kept"), figures.pop("grid")
        layers = [self.layers[reading.index] for reading in readings]
        keys = [(layer.name, reading.call) for layer, reading in zip(layers, readings, strict=True)]
        kl, w1 = self.history.advance(keys, grid, figures["mean"], figures["std"])
        count = np.array([reading.where.count for reading in readings], np.int64)
        values: dict[str, Any] = {
            **figures,
            "layer": [layer.name for layer in layers],
            "call": [reading.call for reading in readings],
            "kind": [layer.kind for layer in layers],
            "type": [layer.type for layer in layers],
            "order": [self._order[layer.name] for layer in layers],
            "count": count,
            "saturated_fraction": self._saturated(readings, figures["saturated_fraction"], kept),
            "nonfinite_count": count - kept,
            "channels": [reading.where.channels for reading in readings],
            "dead_channels": [self._dead(key, reading) for key, reading in zip(keys, readings, strict=True)],
            "drift_kl": kl,
            "drift_w1": w1,
            "running_gap": [_gap_of(layer.module, reading) for layer, reading in zip(layers, readings, strict=True)],
        }
        with np.errstate(over="ignore"):
            return {name: np.asarray(values[name]).astype(dtype) for name, dtype in COLUMNS.items()}

    def _saturated(self, readings: Sequence[Reading], on_output: FloatArray, kept: FloatArray) -> FloatArray:
        fractions = np.full(len(readings), np.nan)
        for row, reading in enumerate(readings):
            if self._tails[reading.index] is not None and kept[row] > 0:
                on_input = reading.fetched.get("saturated")
                fractions[row] = on_output[row] if on_input is None else on_input[0] / reading.where.count
        return fractions

    def _dead(self, key: Key, reading: Reading) -> int:
        active = reading.fetched.get("active")
        return -1 if active is None else self._silent.update(key, active != 0, reading.where)


def _has_running_statistics(module: Any) -> bool:
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or is_lazy(mean):
        return False
    return mean.shape == variance.shape and hasattr(module, "momentum")


def _after_update(module: Any) -> dict[str, Tensor]:
    vectors = {"new_mean": module.running_mean.clone()}
    if module.momentum is None:
        vectors["batches"] = module.num_batches_tracked.clone()
    return vectors


def _gap_of(module: Any, reading: Reading) -> float:
    found = reading.fetched
    if "old_mean" not in found:
        return math.nan
    # momentum None is torch's plain average over all batches.
    momentum = float(1 / found["batches"][0] if "batches" in found else module.momentum)
    eps = float(getattr(module, "eps", 1e-5))
    return running_gap(found["old_mean"], found["old_var"], found["new_mean"], momentum, eps)
