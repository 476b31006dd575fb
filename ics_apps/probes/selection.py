"""Which layers of a model are watched, and what kind each is.

The hooks on them are in `taps`.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import nn

from ics_apps.nearest import did_you_mean
from ics_apps.norms import NormalizedConcat

Kind = Literal["norm", "conv", "recurrent", "linear", "activation", "stream"]
LayerTest = Callable[[str, nn.Module], bool]
LayerChoice = str | type[nn.Module] | LayerTest

KINDS: Final[tuple[Kind, ...]] = (
    "stream",
    "norm",
    "activation",
    "conv",
    "recurrent",
    "linear",
)  # the order in which a budget is spent
WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_NORMS: Final = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)
_ACTIVATION_HOMES: Final = ("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations")
_NORM_NAMES: Final = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


@dataclass(frozen=True, slots=True)
class Layer:
    """One watched module.

    Attributes:
        names: every dotted name under which the model holds it (several if it is shared).
        kind: norm, conv, recurrent, linear, activation or stream (a stream before a concatenation, or any other module
            chosen by hand).
        module: the module.
    """

    names: tuple[str, ...]
    kind: Kind
    module: nn.Module

    @property
    def name(self) -> str:
        """All names, joined by `+`."""
        return "+".join(self.names)

    @property
    def type(self) -> str:
        """The class name, without what FSDP puts before it."""
        return type(self.module).__name__.removeprefix("FSDP")


@dataclass(frozen=True, slots=True)
class Selection:
    """The layers that are watched, in the order of the model, and those that are not.

    Attributes:
        chosen: layers to watch.
        left_out: layers for which the budget had no room.
        scripted: names of `torch.jit.ScriptModule`s, whose inner layers run outside Python, where no hook is called.
    """

    chosen: tuple[Layer, ...]
    left_out: tuple[Layer, ...]
    scripted: tuple[str, ...] = ()

    def describe(self) -> str:
        """One sentence on what is watched and what is not, and one on scripted modules."""
        total = len(self.chosen) + len(self.left_out)
        text = f"{total} layers are watched."
        if self.left_out:
            kinds = Counter(layer.kind for layer in self.left_out)
            counted = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
            shown = _enumerate([layer.name for layer in self.left_out])
            text = f"{len(self.chosen)} of {total} layers are watched (max_layers); left out: {counted}: {shown}."
        if self.scripted:
            text += (
                f" Layers inside a torch.jit.ScriptModule call no hooks and are left out: {_enumerate(self.scripted)}."
            )
        return text


def check_max_layers(max_layers: int) -> None:
    """Refuse a budget that leaves no layer."""
    if max_layers < 1:
        raise ValueError(f"max_layers is {max_layers}; give at least 1.")


def select_layers(
    model: nn.Module, layers: LayerChoice | Sequence[LayerChoice] | None = None, max_layers: int = 64
) -> Selection:
    """Choose the layers of `model` to watch.

    Shared modules appear once with all their names. When there are more than `max_layers`, streams and norms are kept
    first, then activations, convolutions, recurrent and linear layers, each thinned evenly over the depth of the model.
    Layers inside a `torch.jit.ScriptModule` are left out: they run outside Python, where no hook is called.

    Args:
        model: any module.
        layers: None for every norm, convolution, recurrent, linear and activation layer and every stream of a
            `NormalizedConcat`; or one or several of: a kind (`"norm"`), a class or class name (`"Conv2d"`), a dotted
            name (`"encoder.0"`), a name pattern (`"encoder.*"`, which keeps only layers of the six kinds), a test
            `(name, module) -> bool`.
        max_layers: the most layers to watch, >= 1.

    Returns:
        The selection.

    Raises:
        ValueError: a choice that matches no layer, `max_layers` < 1, or a model with `nn.DataParallel`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout())
        >>> [(layer.name, layer.kind) for layer in select_layers(model).chosen]
        [('0', 'conv'), ('1', 'norm'), ('2', 'activation')]
        >>> [layer.name for layer in select_layers(model, ["Conv2d", "2"]).chosen]
        ['0', '2']

    Reference: ours.
    """
    check_max_layers(max_layers)
    _refuse_replicas(model)
    scripted = _scripted_in(model)
    found = _layers_of(model)
    if layers is None:
        candidates = [entry.layer for entry in found if entry.kind is not None and not entry.inside]
    else:
        choices: Sequence[LayerChoice] = layers if isinstance(layers, (list, tuple)) else [layers]  # type: ignore[list-item]
        matched = [{id(entry.module) for entry in found if _matches(choice, entry)} for choice in choices]
        for choice, hits in zip(choices, matched, strict=True):
            if not hits:
                raise ValueError(_no_match(choice, found, scripted))
        wanted = set().union(*matched)
        candidates = [entry.layer for entry in found if id(entry.module) in wanted]
    return replace(_within_budget(candidates, max_layers), scripted=scripted)


def plain_name(path: str) -> str:
    """A dotted name without the parts that wrappers put into it, which say nothing about the model.

    Example:
        >>> plain_name("net._orig_mod.conv")
        'net.conv'
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a layer from its class, None if it is none of norm, conv, recurrent, linear, activation.

    Example:
        >>> kind_of(nn.GroupNorm(2, 4)), kind_of(nn.ConvTranspose3d(1, 1, 2)), kind_of(nn.Dropout())
        ('norm', 'conv', None)

    Reference: ours.
    """
    bases = type(module).__mro__
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent"
    if isinstance(module, (nn.Linear, nn.Bilinear)) or type(module).__name__ == "Conv1D":
        return "linear"
    if isinstance(module, NormalizedConcat):
        return None
    if isinstance(module, _NORMS) or any(base.__module__.startswith("ics_apps.norms.") for base in bases):
        return "norm"
    if not isinstance(module, nn.MultiheadAttention) and any(b.__module__.startswith(_ACTIVATION_HOMES) for b in bases):
        return "activation"
    if next(module.children(), None) is None and type(module).__name__.endswith(_NORM_NAMES):
        return "norm"
    return None


@dataclass(slots=True)
class _Found:
    module: nn.Module
    names: list[str]
    kind: Kind | None
    inside: bool  # part of a norm, stream or metric, which stands for it

    @property
    def layer(self) -> Layer:
        return Layer(tuple(self.names), self.kind or "stream", self.module)


def _layers_of(model: nn.Module) -> list[_Found]:
    concats = [module for module in model.modules() if isinstance(module, NormalizedConcat)]
    streams = {id(child) for concat in concats for child in concat.children()}
    scripted = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    unreachable = {id(part) for module in scripted for part in module.modules() if part is not module}
    covered: set[int] = set()
    found: dict[int, _Found] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = plain_name(path)
        known = found.get(id(module))
        if known is not None:
            if name not in known.names:
                known.names.append(name)
            continue
        if not name or id(module) in unreachable:
            continue
        kind: Kind | None = "stream" if id(module) in streams else kind_of(module)
        found[id(module)] = _Found(module, [name], kind, id(module) in covered)
        if kind in ("stream", "norm") or _is_metric(module):
            covered.update(id(part) for part in module.modules() if part is not module)
    return list(found.values())


def _refuse_replicas(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            raise ValueError(
                f"The model{f' at {path}' if path else ''} is an nn.DataParallel, which runs throw-away copies of its "
                "layers that no hook can report from; use DistributedDataParallel, or one device."
            )


def _scripted_in(model: nn.Module) -> tuple[str, ...]:
    """The outermost scripted modules that have layers inside."""
    names: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}." if outer else "") for outer in names)
        if isinstance(module, torch.jit.ScriptModule) and not inside and next(module.children(), None) is not None:
            names.append(path)
    return tuple(plain_name(name) for name in names)


def _is_metric(module: nn.Module) -> bool:
    return any(base.__module__.startswith("torchmetrics.") for base in type(module).__mro__)


def _matches(choice: LayerChoice, entry: _Found) -> bool:
    if isinstance(choice, str):
        if choice == entry.kind or any(choice == base.__name__ for base in type(entry.module).__mro__[:-2]):
            return True
        if any(letter in choice for letter in "*?["):
            return entry.kind is not None and any(fnmatch.fnmatchcase(name, choice) for name in entry.names)
        return choice in entry.names
    if isinstance(choice, type):
        return isinstance(entry.module, choice)
    return any(choice(name, entry.module) for name in entry.names)


def _no_match(choice: LayerChoice, found: Sequence[_Found], scripted: Sequence[str]) -> str:
    if scripted:
        return (
            f"layers: {choice!r} matches no layer outside the torch.jit.ScriptModule {_enumerate(scripted)}, whose "
            "layers call no hooks; choose other layers, or watch the model before it is scripted."
        )
    if not isinstance(choice, str):
        return f"layers: {choice!r} matches no layer of the model; give a class or test that matches at least one."
    known = [*KINDS, *(type(entry.module).__name__ for entry in found), *(n for entry in found for n in entry.names)]
    hint = did_you_mean(choice, known)
    return f"layers: '{choice}' matches no layer of the model (a kind, a class name, a name or a pattern){hint}"


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _within_budget(candidates: Sequence[Layer], budget: int) -> Selection:
    keep: set[int] = set()
    for kind in KINDS:
        of_kind = [place for place, layer in enumerate(candidates) if layer.kind == kind]
        keep.update(_thin(of_kind, budget - len(keep)))
    chosen = tuple(layer for place, layer in enumerate(candidates) if place in keep)
    return Selection(chosen, tuple(layer for place, layer in enumerate(candidates) if place not in keep))


def _thin(places: Sequence[int], room: int) -> Iterator[int]:
    """At most `room` of the places, evenly spaced."""
    if len(places) <= room:
        yield from places
    else:
        yield from (places[(2 * k + 1) * len(places) // (2 * room)] for k in range(room))
