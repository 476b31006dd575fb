"""What the hooks do inside a compiled graph, and how to tell that a model was compiled without them.

A compiler cannot trace a recorder. It sees opaque operators here, which find the tap again when the graph runs. The
hooks themselves are in `taps`.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ics_apps.probes.selection import Layer, plain_name

UNKNOWN: Final = -1  # the number of a forward that cannot be told


class Receiver(Protocol):
    """Who takes what a graph hands over while it runs."""

    def receive_input(self, x: Tensor | None, statistics: Sequence[Tensor]) -> None:
        """The layer is about to run."""

    def number_forward(self) -> int:
        """A number for this forward, under which its gradient will come; a recomputation has that of its forward."""

    def receive_output(self, x: Tensor, statistics: Sequence[Tensor], number: int) -> None:
        """The layer has run."""

    def receive_gradient(self, number: int, gradient: Tensor) -> None:
        """The gradient of that forward's output has been computed."""


def address_of(receiver: Receiver) -> Tensor:
    """Where a graph finds the receiver: an int64 tensor of one element.

    A tensor is an input of a graph, so that one graph serves all modules of a class; a plain number would be compiled
    in and make a graph a module.
    """
    address = next(_addresses)
    _RECEIVERS[address] = receiver
    return torch.tensor(address, device="cpu")


def hand_over_input(x: Tensor | None, statistics: Sequence[Tensor], address: Tensor) -> None:
    """Call `receive_input` when the graph runs."""
    torch.ops.ics_apps.hand_over_input(x, statistics, _ORDER, address)


def hand_over_output(x: Tensor, statistics: Sequence[Tensor], address: Tensor) -> None:
    """Call `receive_output` when the graph runs."""
    torch.ops.ics_apps.hand_over_output(x, statistics, _ORDER, _NO_NUMBER, address)


def hand_over_with_gradient(x: Tensor, statistics: Sequence[Tensor], address: Tensor) -> Tensor:
    """Call `receive_output`, and `receive_gradient` in the backward; the result takes the place of `x`."""
    y, number = torch.ops.ics_apps.follow(x, _ORDER, address)
    torch.ops.ics_apps.hand_over_output(y.detach(), statistics, _ORDER, number, address)
    return y  # type: ignore[no-any-return]


def compiled_before(model: nn.Module) -> list[str]:
    """Compiled parts of a model of which torch holds code from before the hooks were there.

    Torch leaves hooks out of what it checks before it runs compiled code again, so hooks put on later are never
    called; and since code belongs to a class, this is so even for a new model of a class that was compiled before. What
    was compiled in evaluation mode only is named too, though it does no harm: `silent_layers` tells.
    `torch.compiler.reset()` throws the old code away.

    Args:
        model: the model with or without hooks.

    Returns:
        Dotted names, "" for the model itself.

    Example:
        >>> torch.compiler.reset()
        >>> compiled_before(nn.Sequential(torch.compile(nn.Linear(1, 1))))
        []

    Reference: ours.
    """
    if "torch._dynamo" not in sys.modules:
        return []
    names = (plain_name(path) for path, module in model.named_modules() if any(_stale_entries(module)))
    return list(dict.fromkeys(names))


def silent_layers(layers: Sequence[Layer], heard: Collection[str], compiled: Sequence[str]) -> list[str]:
    """Layers in the compiled parts that did not report in a sampled step: their hooks are not in the compiled code.

    Args:
        layers: the watched layers.
        heard: names of layers that reported.
        compiled: names from `compiled_before`.

    Returns:
        Names of layers.

    Example:
        >>> layers = [Layer((name,), "linear", nn.Identity()) for name in ("net.fc", "net.out", "head")]
        >>> silent_layers(layers, ["net.out"], ["net"])
        ['net.fc']

    Reference: ours.
    """
    silent = [layer for layer in layers if layer.name not in heard]
    return [
        layer.name
        for layer in silent
        if any(not part or f"{name}.".startswith(f"{part}.") for part in compiled for name in layer.names)
    ]


_addresses = itertools.count()
_RECEIVERS: Final[WeakValueDictionary[int, Receiver]] = WeakValueDictionary()
# Every operator claims to write here: so none is dropped for want of a result, and they keep their order.
_ORDER: Final = torch.zeros(1, device="cpu")
_NO_NUMBER: Final = torch.tensor(UNKNOWN, device="cpu")
# CUDA graphs would replay the kernels and never come back to Python.
_TAGS: Final = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op(
    "ics_apps::hand_over_input",
    mutates_args=("order",),
    schema="(Tensor? x, Tensor[] statistics, Tensor(a!) order, Tensor address) -> ()",
    tags=_TAGS,
)
def _hand_over_input(x: Tensor | None, statistics: Sequence[Tensor], _order: Tensor, address: Tensor) -> None:
    receiver = _RECEIVERS.get(int(address))
    if receiver is not None:
        receiver.receive_input(x, statistics)


@torch.library.custom_op(
    "ics_apps::hand_over_output",
    mutates_args=("order",),
    schema="(Tensor x, Tensor[] statistics, Tensor(a!) order, Tensor number, Tensor address) -> ()",
    tags=_TAGS,
)
def _hand_over_output(x: Tensor, statistics: Sequence[Tensor], _order: Tensor, number: Tensor, address: Tensor) -> None:
    receiver = _RECEIVERS.get(int(address))
    if receiver is not None:
        known = int(number)
        receiver.receive_output(x, statistics, receiver.number_forward() if known == UNKNOWN else known)


@torch.library.custom_op(
    "ics_apps::follow",
    mutates_args=(),
    schema="(Tensor x, Tensor order, Tensor address) -> (Tensor, Tensor)",
    tags=_TAGS,
)
def _follow(x: Tensor, _order: Tensor, address: Tensor) -> tuple[Tensor, Tensor]:
    receiver = _RECEIVERS.get(int(address))
    number = UNKNOWN if receiver is None else receiver.number_forward()
    return x.clone(), torch.tensor(number, device="cpu")


@torch.library.custom_op(
    "ics_apps::hand_over_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor number, Tensor address) -> Tensor",
    tags=_TAGS,
)
def _hand_over_gradient(gradient: Tensor, number: Tensor, address: Tensor) -> Tensor:
    receiver = _RECEIVERS.get(int(address))
    if receiver is not None:
        receiver.receive_gradient(int(number), gradient)
    return gradient.clone()


@_hand_over_input.register_fake
def _(x: Tensor | None, statistics: Sequence[Tensor], order: Tensor, address: Tensor) -> None: ...


@_hand_over_output.register_fake
def _(x: Tensor, statistics: Sequence[Tensor], order: Tensor, number: Tensor, address: Tensor) -> None: ...


@_follow.register_fake
def _(x: Tensor, _order: Tensor, address: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(address)


@_hand_over_gradient.register_fake
def _(gradient: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _keep_number(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], inputs[2])


def _follow_back(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None, None]:
    number, address = ctx.saved_tensors
    return torch.ops.ics_apps.hand_over_gradient(gradient, number, address), None, None


_follow.register_autograd(_follow_back, setup_context=_keep_number)


def _stale_entries(module: nn.Module) -> Iterator[bool]:
    """Whether each piece of code that torch holds for a compiled module was made without our hooks."""
    from torch._dynamo.eval_frame import OptimizedModule, _debug_get_cache_entry_list
    from torch._dynamo.external_utils import wrap_inline

    compiled = isinstance(module, OptimizedModule) or module._compiled_call_impl is not None
    wrapped = [value for value in (*vars(module).values(), type(module).forward) if _is_wrapped(value)]
    if not compiled and not wrapped:
        return
    # Code is held where tracing began: at the forward, at another wrapped method, in a frame around a module of
    # torch's own, or, after a graph break, further inside.
    starts = [*(value._torchdynamo_orig_callable for value in wrapped), wrap_inline(len)]
    starts += [
        getattr(type(part).forward, "_torchdynamo_orig_callable", type(part).forward) for part in module.modules()
    ]
    codes = {code for start in starts if (code := getattr(inspect.unwrap(start, stop=_has_code), "__code__", None))}
    for code in codes:
        for entry in _debug_get_cache_entry_list(code):
            yield "._sink" not in str(entry.guard_manager)


def _is_wrapped(value: Any) -> bool:
    return callable(value) and hasattr(value, "_torchdynamo_orig_callable")


def _has_code(value: Any) -> bool:
    return hasattr(value, "__code__")
