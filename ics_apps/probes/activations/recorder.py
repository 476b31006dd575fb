"""Reads the outputs of the watched layers, and the gradients with respect to them, during one step.

No clock and no file: when to open it and where the table goes is up to the caller. What the table's figures are made of
is in `tabulate`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ics_apps.norms.distributed import in_group
from ics_apps.probes.activations.arena import Arena
from ics_apps.probes.activations.channels import ChannelAxis
from ics_apps.probes.activations.columns import Table
from ics_apps.probes.activations.histogram import MOST_VALUES
from ics_apps.probes.activations.norm_state import is_scale_invariant, pools_batch
from ics_apps.probes.activations.plans import Plan
from ics_apps.probes.activations.readings import Reading, fetched
from ics_apps.probes.activations.records import SATURATED_INPUT, Ranks, merge
from ics_apps.probes.activations.sampling import locate, read
from ics_apps.probes.activations.saturation import tails_of
from ics_apps.probes.activations.tabulate import Tabulator
from ics_apps.probes.activations.taps import Tap
from ics_apps.probes.activations.weights import WeightWatch
from ics_apps.probes.selection import Layer

MAX_CALLS: Final = 16  # forwards of one layer under one tag that are kept apart in a step; later ones are not read
MAX_CELL_CALLS: Final = 64  # time steps of a recurrent cell that are pooled; later ones are not read
GRADIENT_SHARE: Final = 4  # a gradient is read at a quarter as many places as an output: only RMS and zeros are told

PlanKey = tuple[int, str, int]  # number of the layer, tag, which forward of it
_Identity = tuple[int, int, torch.Size]  # address, version, shape: whether two tensors are one and the same


def check_sample_size(sample_size: int) -> None:
    """Refuse a sample that makes no quantiles, or that the histogram's counters cannot hold."""
    if not 64 <= sample_size <= MOST_VALUES:
        raise ValueError(f"sample_size is {sample_size}; give 64 to {MOST_VALUES}.")


class Recorder:
    """Hooks on the chosen layers, open during sampled steps only.

    Every output is read where it is made, at no more than `sample_size` places, into memory on its device that is
    allocated once; `close` fetches all of it with one transfer, and in a process group joins the ranks' samples with
    one collective operation: each rank reads its share of `sample_size`, and every rank gets the same table, that of
    the joint batch. Nothing of the model is written: no weight, buffer, gradient, mode or random generator. Forwards
    are counted per layer, tag and step: `call` 0, 1, ..., at most 16; the time steps of a recurrent cell are pooled.

    A channel of an activation or stream is dead when 100 values of it read in a row, over as many steps as it takes,
    were 0: it is active at fewer than 3 % of positions with 95 % confidence (rule of three). A channel is constant when
    100 values of it did not vary and are not 0.

    Args:
        layers: what to watch, from `select_layers`.
        sample_size: elements read of each output at most, 64 to 65,535.
        device: where the process group's backend wants tensors, the CPU if None; not used in a single process.

    Example:
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

    def __init__(self, layers: Sequence[Layer], sample_size: int = 1024, device: torch.device | None = None) -> None:
        check_sample_size(sample_size)
        self.layers = tuple(layers)
        self.open = False
        self.tag = ""
        self.sample_size = sample_size
        self._tails = [tails_of(layer.module) if layer.kind == "activation" else None for layer in self.layers]
        self._taps = [Tap(layer, index, self) for index, layer in enumerate(self.layers)]
        self._handles: list[RemovableHandle] = []
        self._tabulator = Tabulator(self.layers, self._tails)
        self._weights = WeightWatch(self.layers)
        self._ranks = Ranks(device or torch.device("cpu"))
        self._arenas: dict[torch.device, Arena] = {}
        self._plans: dict[PlanKey, Plan] = {}
        self._muted: set[int] = set()
        self._turn = 0
        self._world = 1  # processes that share the sample
        self.discard()

    def attach(self) -> None:
        """Put the hooks on; calling it again changes nothing."""
        if not self._handles:
            for tap, layer, tails in zip(self._taps, self.layers, self._tails, strict=True):
                wants_input = layer.kind == "norm" or (tails is not None and tails.side == "input")
                self._handles.extend(tap.attach(wants_input, wants_gradient=True))

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

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        """Keep the forwards inside apart from others, under this tag."""
        before, self.tag = self.tag, tag
        try:
            yield
        finally:
            self.tag = before

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Forwards inside are not read: those that a probe makes between two of the training's own."""
        before, self.open = self.open, False
        try:
            yield
        finally:
            self.open = before

    def start(self, turn: int) -> None:
        """Read every forward of the watched layers from now on.

        Args:
            turn: number of the sample; it moves the offset of the strided sample.
        """
        self.discard()
        self._turn = turn
        self._world = torch.distributed.get_world_size() if in_group() else 1
        self._weights.before()
        for plan in self._plans.values():
            plan.prepare(self._arenas[plan.device], turn)
        self.open = True

    def pause(self) -> None:
        """Read no more, and keep what was read for `close`."""
        self.open = False
        self._tickets.clear()

    def discard(self) -> None:
        """Stop reading and forget what was read since `start`."""
        self.open = False
        self._readings: list[Reading] = []
        self._tickets: dict[int, Plan] = {}
        self._calls: dict[tuple[int, str], int] = {}
        self._stashes: dict[int, dict[str, Tensor]] = {}
        self._axis = ChannelAxis()
        self._invariant: set[int] = set()
        self._affine: tuple[int, _Identity] | None = None
        for arena in self._arenas.values():
            arena.clear()

    def close(self, lr: Mapping[int, float] | None = None, grad_scale: float = 1.0) -> Table:
        """Stop reading and fetch the table of what was read since `start`, in the order of reading.

        In a process group every rank has to call it at the same step.

        Args:
            lr: learning rate by `id` of the parameter, as it was in the step; without it `effective_lr` is NaN.
            grad_scale: what the loss was multiplied by (AMP).

        Returns:
            One array for each of `COLUMNS`; empty if no watched layer ran.
        """
        self.pause()
        with torch.no_grad():
            records = merge(self._ranks.gather(merge(fetched(self._readings, self._arenas, self.layers))))
            table = self._tabulator.table(records, self._weights.after(lr or {}, self._invariant), grad_scale)
        self.discard()
        return table

    def before(self, tap: Tap, x: Tensor | None, statistics: tuple[Tensor, ...]) -> None:
        """Keep what the layer is about to overwrite: running statistics, or an input that an in-place layer loses."""
        tails, layer = self._tails[tap.index], tap.layer
        if x is not None and layer.kind == "norm":
            if self._affine is not None and self._affine[1] == _identity(x) and is_scale_invariant(layer.module):
                self._invariant.add(self._affine[0])
        elif x is not None and tails is not None and tails.side == "input":
            sample = read(x, locate(x, self._size(layer), self._turn))
            share = ((sample <= tails.low) | (sample >= tails.high)).float().mean()
            self._stashes[tap.index] = {SATURATED_INPUT: share}
        if statistics:
            self._stashes[tap.index] = {"before": torch.cat(statistics[:2])}

    def after(self, tap: Tap, x: Tensor, statistics: tuple[Tensor, ...]) -> int | None:
        """Read one output; the ticket under which its gradient is taken."""
        call = self._calls.get((tap.index, self.tag), 0)
        is_cell = isinstance(tap.layer.module, nn.RNNCellBase)
        if call >= (MAX_CELL_CALLS if is_cell else MAX_CALLS) or tap.index in self._muted:
            return None
        self._calls[tap.index, self.tag] = call + 1
        key = tap.index, self.tag, call
        plan = self._plans.get(key)
        try:
            if plan is None or not plan.fits(x):
                plan = self._plans[key] = self._planned(tap.layer, key, 0 if is_cell else call, x, plan)
            self._note(plan.read(x), tap, x, statistics)
        except RuntimeError as error:
            # A tensor of a kind unknown to us must not end a training of days; the layer is given up, aloud.
            self._muted.add(tap.index)
            warnings.warn(f"The monitor cannot read '{tap.layer.name}' and leaves it out: {error}", stacklevel=2)
            return None
        ticket = next(_tickets)
        self._tickets[ticket] = plan
        return ticket

    def gradient(self, ticket: int, gradient: Tensor) -> None:
        """Read the gradient with respect to an output; where a second backward pass comes, the last one counts."""
        plan = self._tickets.get(ticket)
        if plan is not None:  # not of a step that is over
            plan.read_gradient(gradient)

    def state_dict(self) -> dict[str, Any]:
        """What the next samples are compared with: plain types and tensors, loads under `weights_only=True`."""
        return self._tabulator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; layers that this model does not have are kept but not used."""
        self._tabulator.load_state_dict(state)

    def _size(self, layer: Layer) -> int:
        """Places at which one output of this layer is read on this rank."""
        parts = self._world * (MAX_CELL_CALLS if isinstance(layer.module, nn.RNNCellBase) else 1)
        return max(self.sample_size // parts, 1)

    def _planned(self, layer: Layer, key: PlanKey, call: int, x: Tensor, old: Plan | None) -> Plan:
        # The layer before, by which an activation's axis is found, may still have its plan and is not asked again.
        same_rank = old is not None and old.ndim == x.ndim
        axis = old.axis if same_rank and old is not None else self._axis.find(layer, x)
        size = self._size(layer)
        batch = 0
        if axis is not None and pools_batch(layer.module):
            batch = x.shape[0] * (self._world if "Sync" in layer.type else 1)
        plan = Plan(key[0], key[1], call, x, axis, size, max(size // GRADIENT_SHARE, 1), batch)
        if x.device not in self._arenas:
            self._arenas[x.device] = Arena(x.device)
        plan.prepare(self._arenas[x.device], self._turn)
        return plan

    def _note(self, reading: Reading, tap: Tap, x: Tensor, statistics: tuple[Tensor, ...]) -> None:
        """Keep what goes with an output that was read."""
        self._readings.append(reading)
        layer = tap.layer
        self._affine = (tap.index, _identity(x)) if layer.kind in ("conv", "linear") else None
        stash = self._stashes.pop(tap.index, None)
        if stash is not None:
            reading.vectors.update(stash)
        if "before" in reading.vectors:
            reading.vectors["after"] = torch.cat(statistics[:2])
            if len(statistics) > 2:
                reading.vectors["batches"] = statistics[2].clone()
        if not layer.module.training:
            reading.pairs = None
        elif reading.pairs is not None:
            affine = ((name, layer.module._parameters.get(name)) for name in ("weight", "bias"))
            reading.vectors.update({name: value.detach() for name, value in affine if value is not None})


_tickets = itertools.count()


def _identity(x: Tensor) -> _Identity:
    return x.data_ptr(), 0 if x.is_inference() else x._version, x.shape
