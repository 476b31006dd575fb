"""The hooks that hand inputs, outputs and gradients of the watched layers over, eager or compiled.

Which layers are watched is in `selection`, what a compiler sees in `compiled`, what is done with it all in `recorder`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ics_apps.norms.recompute import in_recompute
from ics_apps.probes.activations.compiled import (
    UNKNOWN,
    address_of,
    hand_over_input,
    hand_over_output,
    hand_over_with_gradient,
)
from ics_apps.probes.activations.norm_state import has_running_statistics
from ics_apps.probes.activations.sampling import first_tensor
from ics_apps.probes.selection import Layer

# (running mean, running variance), then the number of batches where the average is over all of them (momentum None).
Statistics = tuple[Tensor, ...]

MOST_TICKETS: Final = 256  # forwards of one layer whose gradients are waited for; more is an unrolled loop


class Sink(Protocol):
    """Who takes what the hooks see; `open` is False except during a sampled step."""

    open: bool

    def before(self, tap: Tap, x: Tensor | None, statistics: Statistics) -> None:
        """A watched layer is about to run: its first readable input, and its running statistics if it moves them."""

    def after(self, tap: Tap, x: Tensor, statistics: Statistics) -> int | None:
        """A watched layer has run: its first readable output; a ticket if the gradient of it is wanted."""

    def gradient(self, ticket: int, gradient: Tensor) -> None:
        """A gradient with respect to an output: at each backward pass, also when the step is over."""


class Tap:
    """The hooks of one layer: when nothing is sampled they read one bool and return.

    A copy of a hooked model (deepcopy, pickle, `torch.save`) carries dead taps, so that it never writes into the
    buffers of the original. The second forward of activation checkpointing, inside a backward, is not handed over; a
    layer that ran more than once in such regions has no gradients there, as nothing tells which forward is repeated.

    In a compiled graph nothing is left of hooks whose sink is closed; when it is open another graph runs, in which
    opaque operators hand over the same tensors. Gradients are handed over there for layers that return a tensor. The
    gradient of a layer that returns its input as it is counts all uses of that tensor in eager mode, and only those
    after the layer in compiled mode.

    Args:
        layer: the layer.
        index: its number at the sink.
        sink: who takes what the hooks see.
    """

    def __init__(self, layer: Layer, index: int, sink: Sink) -> None:
        self.layer = layer
        self.index = index
        self._sink = sink
        self._wants_gradient = False
        self._keeps_statistics = hasattr(layer.module, "running_mean")
        self._address = address_of(self)
        self._tickets: dict[int, int] = {}  # by the number of the forward
        self._forwards: list[int] = []  # the last two since a recomputation: one can be told, two cannot
        self._recomputed = False

    def attach(self, wants_input: bool, wants_gradient: bool) -> list[RemovableHandle]:
        """Register the hooks and return their handles.

        Args:
            wants_input: hand the input over; a norm's input and running statistics are handed over in any case.
            wants_gradient: hand over gradients with respect to outputs for which the sink gives a ticket.
        """
        module = self.layer.module
        self._wants_gradient = wants_gradient
        handles = [module.register_forward_hook(self._after)]
        if wants_input or self.layer.kind == "norm" or self._keeps_statistics:
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
        return handles

    # Beside a break in the graph torch would try to compile these alone.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def receive_input(self, x: Tensor | None, statistics: Sequence[Tensor]) -> None:
        """Pass an input on."""
        if self._sink.open and not in_recompute():
            self._sink.before(self, x, tuple(statistics))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def number_forward(self) -> int:
        """A new number, or in a recomputation that of the forward that is repeated."""
        if in_recompute():
            self._recomputed = True
            return self._forwards[0] if len(self._forwards) == 1 else UNKNOWN
        if self._recomputed:
            self._recomputed = False
            self._forwards.clear()
        number = next(_forwards)
        self._forwards = [*self._forwards[-1:], number]
        return number

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def receive_output(self, x: Tensor, statistics: Sequence[Tensor], number: int) -> None:
        """Pass an output on and keep the ticket."""
        if not self._sink.open or in_recompute():
            return
        self._keep(number, self._sink.after(self, x, tuple(statistics)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def receive_gradient(self, number: int, gradient: Tensor) -> None:
        """Pass a gradient on."""
        ticket = self._tickets.get(number)
        if ticket is not None:
            self._sink.gradient(ticket, gradient.detach())

    def _keep(self, number: int, ticket: int | None) -> None:
        if ticket is not None:
            self._tickets[number] = ticket
            if len(self._tickets) > MOST_TICKETS:
                del self._tickets[next(iter(self._tickets))]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._sink.open or module is not self.layer.module or _transformed():
            return
        x = first_tensor(args)
        if x is None:
            x = first_tensor(kwargs)
        statistics = _moving_statistics(module) if self._keeps_statistics else ()
        if x is None and not statistics:
            return
        if x is not None:
            x = x.detach()
        if torch.compiler.is_compiling():
            hand_over_input(x, statistics, self._address)
        else:
            self.receive_input(x, statistics)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._sink.open or module is not self.layer.module or _transformed():
            return None
        x = first_tensor(output)
        if x is None:
            return None
        statistics = _moving_statistics(module) if self._keeps_statistics else ()
        if torch.compiler.is_compiling():
            if self._wants_gradient and x is output and x.requires_grad:
                return hand_over_with_gradient(x, statistics, self._address)
            hand_over_output(x.detach(), statistics, self._address)
            return None
        self._hand_over(x, statistics)
        return None

    # Beside a break in the graph torch would try to compile this alone.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _hand_over(self, x: Tensor, statistics: Statistics) -> None:
        """Pass an output on, and its gradient when it comes."""
        repeated = in_recompute()
        number = self.number_forward()
        if repeated:
            ticket = self._tickets.get(number)
        else:
            ticket = self._sink.after(self, x.detach(), statistics)
            self._keep(number, ticket)
        # A hook on a leaf would stay there after the step.
        if ticket is not None and self._wants_gradient and x.requires_grad and not x.is_leaf:
            x.register_hook(functools.partial(self._sink.gradient, ticket))  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        return _dead_tap()

    def __reduce__(self) -> tuple[Callable[[], Tap], tuple[()]]:
        return _dead_tap, ()


class _Closed:
    """The sink of a dead tap."""

    open = False

    def before(self, tap: Tap, x: Tensor | None, statistics: Statistics) -> None: ...

    def after(self, tap: Tap, x: Tensor, statistics: Statistics) -> int | None: ...

    def gradient(self, ticket: int, gradient: Tensor) -> None: ...


_forwards = itertools.count()


def _dead_tap() -> Tap:
    return Tap(Layer((), "stream", nn.Identity()), -1, _Closed())


def _transformed() -> bool:
    """Whether an exporter or a transform of `torch.func` (vmap, grad) is at work, which gives no tensors of a step."""
    return torch.compiler.is_exporting() or torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def _moving_statistics(module: Any) -> Statistics:
    """The running statistics of a module that moves them in this forward."""
    if not module.training or not has_running_statistics(module):
        return ()
    moved = module.running_mean, module.running_var
    return moved if module.momentum is not None else (*moved, module.num_batches_tracked)
