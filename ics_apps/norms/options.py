"""The options of a builder: which it has, and whether given ones fit them. Free of torch; ranges are in `ranges`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ics_apps.nearest import did_you_mean

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "None": (type(None),),
}


class NormError(ValueError):
    """A norm was asked for that does not exist, or not with these options, channels or dimension."""


def option_parameters(builder: Callable[..., Any]) -> list[inspect.Parameter]:
    """The options of a builder `(channels, *, dim, **named options)`.

    Raises:
        NormError: An option is not keyword-only or has no default.
    """
    parameters = list(inspect.signature(builder).parameters.values())
    options = [p for p in parameters[1:] if p.name != "dim"]
    for parameter in options:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.default is inspect.Parameter.empty:
            raise NormError(
                f"builder {origin(builder)}: {parameter} must be a keyword-only option with a default, "
                "as in (channels, *, dim, eps=1e-5)"
            )
    return options


def check_options(name: str, builder: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse options that the builder of norm `name` does not have, and values of the wrong type."""
    annotations = {p.name: p.annotation for p in option_parameters(builder)}
    for key, value in given.items():
        if key not in annotations:
            allowed = ", ".join(sorted(annotations)) or "none"
            raise NormError(
                f"norm {name!r} has no option {key!r}{did_you_mean(key, annotations)} Its options: {allowed}"
            )
        annotation = annotations[key]
        wanted = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
        if not _has_type(value, wanted):
            raise NormError(f"option {key!r} of norm {name!r} must be {wanted}, got {value!r} ({type(value).__name__})")


def origin(builder: Callable[..., Any]) -> str:
    """Where a builder was written, for an error."""
    return f"{builder.__module__}:{builder.__qualname__}"


def _has_type(value: object, wanted: str) -> bool:
    """Whether a value fits an annotation such as `float | None`; annotations of other kinds are not judged."""
    names = [part.strip() for part in wanted.split("|")]
    if any(name not in _TYPES for name in names):
        return True
    if isinstance(value, bool):
        return "bool" in names
    return any(isinstance(value, _TYPES[name]) for name in names)
