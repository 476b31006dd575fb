"""What a probe may disturb of a model, kept and put back to the bit: nothing is measured here."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

# Hooks and the like, which a probe may set while it measures: put back by their owner, not here.
_BOOKKEEPING: Final = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}


class ProbeError(ValueError):
    """A probe cannot measure this model or this batch; the sentence says why, and what to do."""


class Surroundings:
    """All that a forward pass moves besides the graph: buffers, modes, other attributes of modules, random generators.

    Attributes are looked into as far as they are modules, tensors, generators, and lists, dicts, sets and tuples of
    such: the states of metrics and a module's own counters are put back; what an object of another class holds is not.
    A tensor that shares the memory of a parameter is left to those who move the parameters.

    `restore` may be called any number of times, also between the building of a graph and its backward pass: the
    tensors are written behind autograd's back, with what they held when the forward began.

    Args:
        model: the model.

    Raises:
        ProbeError: the model has layers without a shape yet.
    """

    def __init__(self, model: nn.Module) -> None:
        if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            raise ProbeError("The model has lazy layers without a shape yet: run it on a batch before it is measured.")
        self._contents = _Contents(left_out=model.parameters())
        self._contents.keep(model)
        self._random = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        # Asking for the state would start CUDA in a process that has no use for it.
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        """Put all of it back."""
        self._contents.restore()
        random.setstate(self._random)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        # Where autocast is on around the caller, it goes on with the weights that it cast, and these may have moved.
        torch.clear_autocast_cache()


class Weights:
    """The parameters, their gradients, whether they require one, and the states of optimizers.

    Args:
        model: the model.
        optimizers: those that step while the probe measures.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> None:
        self._parameters = [
            (parameter, parameter.detach().clone(), parameter.requires_grad, parameter.grad)
            for parameter in model.parameters()
        ]
        self._contents = _Contents()
        self._contents.keep([parameter.grad for parameter in model.parameters()])
        self._contents.keep([(optimizer.state, optimizer.param_groups) for optimizer in optimizers])

    def restore(self) -> None:
        """Put all of it back."""
        self._contents.restore()
        # Last, as an optimizer may keep tensors that share a parameter's memory.
        for parameter, content, requires_grad, gradient in self._parameters:
            parameter.data.copy_(content)
            parameter.requires_grad_(requires_grad).grad = gradient


@contextmanager
def preserved(model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> Iterator[None]:
    """Whatever happens inside, the model leaves as it came: weights, gradients, buffers, modes, random numbers.

    Args:
        model: the model.
        optimizers: those whose states are put back too.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> before = model.weight.item()
        >>> with preserved(model):
        ...     model.weight.data.zero_()
        tensor([[0.]])
        >>> model.weight.item() == before
        True
    """
    surroundings, weights = Surroundings(model), Weights(model, optimizers)
    try:
        yield
    finally:
        weights.restore()
        surroundings.restore()


class _Contents:
    """What mutable values hold, in containers and modules too; each object is put back in place, as others may hold it.

    Args:
        left_out: tensors whose memory is not put back.
    """

    def __init__(self, left_out: Iterable[Tensor] = ()) -> None:
        self._left_out = {tensor.untyped_storage().data_ptr() for tensor in left_out} - {0}
        self._seen: dict[int, Any] = {}  # holds the objects, so that no other one takes an id
        self._undo: list[Callable[[], object]] = []

    def restore(self) -> None:
        """Put all of it back."""
        for undo in self._undo:
            undo()

    def keep(self, value: Any) -> None:
        """Keep what a value holds now; one of no known kind is let be."""
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if not isinstance(value, Tensor) or self._is_written(value):
            undo = _undo(value)
            if undo is not None:
                self._undo.append(undo)
        for part in _parts(value):
            self.keep(part)

    def _is_written(self, tensor: Tensor) -> bool:
        """Whether it can be written in place at all, and is to be put back."""
        if tensor.layout != torch.strided:
            return True
        repeats = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
        return not (repeats or tensor.is_inference() or tensor.untyped_storage().data_ptr() in self._left_out)


def _parts(value: Any) -> Iterable[Any]:
    """What may change inside a value."""
    if isinstance(value, nn.Module):
        return [part for name, part in vars(value).items() if name not in _BOOKKEEPING]
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | deque | tuple) else ()


@functools.singledispatch
def _undo(_value: Any) -> Callable[[], object] | None:
    """What puts a value back to what it holds now; None for one of no known kind."""
    return None


@_undo.register
def _(value: Tensor) -> Callable[[], object]:
    content = value.detach().clone()
    if value.layout != torch.strided:
        # `data` of a sparse tensor has indices of its own.
        return lambda: value.detach_().copy_(content)
    return lambda: value.data.copy_(content)


@_undo.register
def _(value: nn.Module) -> Callable[[], object]:
    attributes = dict(vars(value))

    def undo() -> None:
        # New: a state that the first forward makes. A function is a patch, which its owner takes off.
        for name in [name for name, part in vars(value).items() if name not in attributes and not callable(part)]:
            del vars(value)[name]
        vars(value).update(attributes)

    return undo


@_undo.register
def _(value: dict) -> Callable[[], object]:  # type: ignore[type-arg]
    keys, parts = list(value), list(value.values())

    def undo() -> None:
        if not (_are(list(value), keys) and _are(list(value.values()), parts)):
            value.clear()
            value.update(zip(keys, parts, strict=True))

    return undo


@_undo.register(list)
@_undo.register(deque)
def _(value: list[Any] | deque[Any]) -> Callable[[], object]:
    items = list(value)

    def undo() -> None:
        if not _are(list(value), items):
            value.clear()
            value.extend(items)

    return undo


@_undo.register
def _(value: set) -> Callable[[], object]:  # type: ignore[type-arg]
    members = set(value)

    def undo() -> None:
        value.intersection_update(members)
        value.update(members)

    return undo


@_undo.register
def _(value: torch.Generator) -> Callable[[], object]:
    state = value.get_state()
    return lambda: value.set_state(state)


@_undo.register
def _(value: np.random.Generator) -> Callable[[], object]:
    bits, state = value.bit_generator, value.bit_generator.state
    return lambda: setattr(bits, "state", state)


@_undo.register
def _(value: random.Random) -> Callable[[], object]:
    state = value.getstate()
    return lambda: value.setstate(state)


def _are(now: list[Any], then: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
