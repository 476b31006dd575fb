"""Find the norms of a model, under all of their names, and choose among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from ics_apps.nearest import did_you_mean
from ics_apps.norms.convert.describe import OldNorm, describe
from ics_apps.norms.options import NormError

Where: TypeAlias = type[nn.Module] | str | Callable[[str, nn.Module], bool] | Iterable["type[nn.Module] | str"] | None
"""Which norms: a class, a shell pattern over qualified names, several of both, or a function of name and module."""


@dataclass(frozen=True)
class FoundNorm:
    """A norm of a model: its names (several if it is shared), the module, and what is known of it or why it stays."""

    names: tuple[str, ...]
    module: nn.Module
    known: OldNorm | str

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]


def find_norms(model: nn.Module) -> list[FoundNorm]:
    """All norms in the model's order, also those that cannot be replaced; what a norm contains is part of it.

    Raises:
        NormError: The model itself is a norm, so there is no place to put another in.
    """
    if describe(model) is not None:
        raise NormError(
            f"the model is itself a norm ({type(model).__name__}); build the new one with make_norm, or wrap it"
        )
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    found: list[FoundNorm] = []
    inside: list[str] = []
    for module, places in names.items():
        if any(places[0].startswith(prefix) for prefix in inside):
            continue
        known = describe(module)
        if known is not None:
            found.append(FoundNorm(tuple(places), module, known))
            inside += [f"{place}." for place in places]
    return found


def chosen(norms: list[FoundNorm], where: Where) -> list[FoundNorm]:
    """The norms that `where` names, all if it is None.

    Raises:
        NormError: `where` is of another type, or names none of the norms.
    """
    if where is None:
        return norms
    wanted = [norm for norm in norms if _matches(norm, where)]
    if wanted or not norms:
        return wanted
    first = where if isinstance(where, str) else None
    hint = did_you_mean(first, [name for norm in norms for name in norm.names]) if first else "."
    classes = ", ".join(sorted({type(norm.module).__name__ for norm in norms}))
    raise NormError(
        f"where={where!r} names none of the model's {len(norms)} norms{hint} They are called {norms[0].name!r} to "
        f"{norms[-1].name!r}, of class {classes}"
    )


def put(model: nn.Module, found: FoundNorm, new: nn.Module) -> None:
    """Put a module in the place of a norm, under all of its names."""
    for name in found.names:
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = new


def _matches(norm: FoundNorm, where: object) -> bool:
    if isinstance(where, str):
        return any(fnmatchcase(name, where) for name in norm.names)
    if isinstance(where, type):
        return isinstance(norm.module, where)
    if callable(where):
        return any(bool(where(name, norm.module)) for name in norm.names)
    if isinstance(where, Iterable):
        return any(_matches(norm, part) for part in where)
    raise NormError(
        f"where is a class, a name pattern, several of both, or a function (name, module) -> bool, got {where!r}"
    )
