"""The parameters of a model by layer, in the order in which one forward pass uses them.

Which layers are watched by hooks is `selection`; here only parameters count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.selection import LayerChoice, check_max_layers, kind_of, plain_name, select_layers


@dataclass(frozen=True, slots=True, eq=False)
class ParameterLayer:
    """Parameters that are first used together.

    Attributes:
        name: the names of the module that holds them, joined by `+`; of the model itself its class name; of an entry of
            an `nn.ParameterList` or `nn.ParameterDict` its own name.
        order: place in forward order, from 0, over all layers of the model.
        module: that module.
        parameters: those that require a gradient, in the order of their first use.
    """

    name: str
    order: int
    module: nn.Module
    parameters: tuple[nn.Parameter, ...]


def parameter_layers(model: nn.Module, forward: Callable[[], object]) -> list[ParameterLayer]:
    """Group the parameters that a forward pass uses into layers, from one call of `forward`.

    A parameter's place is that of the first torch operation that takes it, so branches come in the order in which they
    run, and functional uses count. A layer is one module that holds parameters of its own; one that holds children as
    well is a layer beside theirs. Parameters of norms and activations belong to the layer used before them, the
    convolution or linear layer that they follow; with none before they are a layer of their own. A tied parameter
    belongs to the layer that uses it first, a parametrization's to the module that it shapes. Frozen parameters and
    those of modules that do not run are left out, and layers that hold no others. Inside a `torch.jit.ScriptModule` the
    order is that of its compiler, which may take weights early.

    Args:
        model: the model; its state is the caller's to keep, see `Objective`.
        forward: runs the model on one batch, eagerly.

    Returns:
        The layers in forward order.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
        >>> x = torch.ones(2, 1, 4, 4)
        >>> [(layer.name, len(layer.parameters)) for layer in parameter_layers(model, lambda: model(x))]
        [('0', 4), ('4', 2)]

    Reference: Santurkar et al. 2018 (1805.11604), whose definition leaves order and norms open: ours.
    """
    # Autocast, if it is on around the caller, remembers the weights that it cast: their use would not be seen.
    torch.clear_autocast_cache()
    trace = _Trace(_homes_of(model))
    with trace.watching(), trace:
        forward()
    trainable = [(home, own) for home in trace.members if (own := [p for p in trace.members[home] if p.requires_grad])]
    return [
        ParameterLayer(home.name or type(model).__name__, order, home.module, tuple(own))
        for order, (home, own) in enumerate(trainable)
    ]


def choose_layers(
    model: nn.Module,
    found: Sequence[ParameterLayer],
    choice: LayerChoice | Sequence[LayerChoice] | None = None,
    max_layers: int = 64,
) -> list[ParameterLayer]:
    """Those of the layers whose modules match a choice.

    Args:
        model: the model.
        found: its layers.
        choice: as in `select_layers`; None for all.
        max_layers: the most layers, >= 1; more are thinned evenly over the depth.

    Returns:
        The chosen ones, in forward order.

    Raises:
        ProbeError: no layer of parameters is held by a module that matches.
        ValueError: a choice that matches no module, or `max_layers` < 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        >>> found = parameter_layers(model, lambda: model(torch.ones(1, 2)))
        >>> [layer.name for layer in choose_layers(model, found, "2")]
        ['2']

    Reference: ours.
    """
    check_max_layers(max_layers)
    chosen = list(found)
    if choice is not None:
        every_module = sum(1 for _ in model.modules())
        matching = {id(layer.module) for layer in select_layers(model, choice, every_module).chosen}
        chosen = [layer for layer in found if id(layer.module) in matching]
        if not chosen:
            shown = ", ".join(layer.name for layer in found[:5]) + (", ..." if len(found) > 5 else "")
            raise ProbeError(
                f"layers: {choice!r} matches no module with weights of its own to train; choose of: {shown}."
            )
    count = min(len(chosen), max_layers)
    return [chosen[(2 * place + 1) * len(chosen) // (2 * count)] for place in range(count)]


@dataclass(slots=True, eq=False)
class _Home:
    """What holds parameters: a module, or one entry of a list of parameters."""

    module: nn.Module
    follows: bool  # a norm or an activation, or inside one
    names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "+".join(self.names)


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation, below autograd and autocast, and notes which parameters it takes.

    Args:
        homes: of each parameter by its `id`; a tied one has several.
    """

    def __init__(self, homes: dict[int, list[_Home]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.members: dict[_Home, list[nn.Parameter]] = {}  # in the order of first uses
        self._homes = homes
        self._seen: set[int] = set()
        self._last: _Home | None = None  # the layer used last
        self._entered: dict[int, int] = {}  # number of the module's last forward
        self._numbers = itertools.count()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self._homes and isinstance(value, nn.Parameter):
                self._note(value)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, it is known which of the modules that share a parameter ran last."""
        sharing = {id(h.module): h.module for homes in self._homes.values() if len(homes) > 1 for h in homes}
        eager = [module for module in sharing.values() if not isinstance(module, torch.jit.ScriptModule)]
        handles = [module.register_forward_pre_hook(self._enter) for module in eager]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._entered[id(module)] = next(self._numbers)

    def _note(self, parameter: nn.Parameter) -> None:
        home = max(self._homes[id(parameter)], key=lambda home: self._entered.get(id(home.module), -1))
        layer = self._last if home.follows and self._last is not None else home
        if id(parameter) not in self._seen:
            self._seen.add(id(parameter))
            self.members.setdefault(layer, []).append(parameter)
        if not home.follows:
            self._last = home


def _homes_of(model: nn.Module) -> dict[int, list[_Home]]:
    followers = {
        id(part) for module in model.modules() if kind_of(module) in ("norm", "activation") for part in module.modules()
    }
    known: dict[int, _Home] = {}
    homes: dict[int, list[_Home]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            holder = _shaped(path)
            listed = isinstance(module, nn.ParameterList | nn.ParameterDict)
            owner = module if listed else model.get_submodule(holder)
            key = id(parameter) if listed else id(owner)
            home = known.setdefault(key, _Home(owner, id(owner) in followers))
            shown = plain_name(f"{path}.{name}".removeprefix(".") if listed else holder)
            if shown and shown not in home.names:
                home.names.append(shown)
            if home not in homes.setdefault(id(parameter), []):
                homes[id(parameter)].append(home)
    return homes


def _shaped(path: str) -> str:
    """The path of the module that a parametrization at `path` shapes; any other path as it is."""
    parts = path.split(".")
    return ".".join(parts[: parts.index("parametrizations")]) if "parametrizations" in parts else path
