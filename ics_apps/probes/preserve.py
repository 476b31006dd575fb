"""What a probe may disturb of a model, kept and put back to the bit: nothing is measured here."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ProbeError(ValueError):
    """A probe cannot measure this model or this batch; the sentence says why, and what to do."""


class Surroundings:
    """All that a forward pass moves besides the graph: buffers, random generators, modes, states of metrics.

    `restore` may be called any number of times, also between the building of a graph and its backward pass: the
    buffers are written behind autograd's back, with what they held when the forward began.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._metrics = [(module, _metric_state(module)) for module in model.modules() if _is_metric(module)]
        self._random = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Put all of it back."""
        for module, mode in self._modes:
            module.training = mode
        for module, name, buffer, content in self._buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(content)
        for module, state in self._metrics:
            module.__dict__.update(_copied(state))
        random.setstate(self._random)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


class Weights:
    """The parameters, their gradients, and the states of optimizers.

    Args:
        model: the model.
        optimizers: those that step while the probe measures.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> None:
        self._parameters = [
            (parameter, parameter.detach().clone(), parameter.grad, _clone(parameter.grad))
            for parameter in model.parameters()
        ]
        self._optimizers = [(optimizer, _optimizer_state(optimizer)) for optimizer in optimizers]

    def restore(self) -> None:
        """Put all of it back."""
        for parameter, content, gradient, values in self._parameters:
            parameter.data.copy_(content)
            parameter.grad = gradient
            if gradient is not None and values is not None:
                gradient.data.copy_(values)
        for optimizer, (state, groups) in self._optimizers:
            optimizer.state.clear()
            optimizer.state.update({parameter: _copied(entries) for parameter, entries in state.items()})
            for group, options in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(_copied(options))


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


def _is_metric(module: nn.Module) -> bool:
    """A metric of torchmetrics, whose states are neither parameters nor buffers."""
    return hasattr(module, "metric_state") and hasattr(module, "_defaults")


def _metric_state(metric: Any) -> dict[str, Any]:
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    return _copied({name: metric.__dict__[name] for name in names if name in metric.__dict__})


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    state = {parameter: _copied(entries) for parameter, entries in optimizer.state.items()}
    return state, [_copied(group) for group in optimizer.param_groups]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy with tensors of its own; parameters stay the same objects."""
    return {name: _clone(value) for name, value in state.items()}


def _clone(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_clone(item) for item in value] if isinstance(value, list) else value
