"""The nearest right name for a misspelt one, as errors say it. Nothing is imported here, so any layer may use it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str], likeness: float = 0.5) -> str | None:
    """The known name most like `name`.

    Args:
        name: what was given.
        known: what is allowed.
        likeness: the least similarity, from 0 (any name) to 1 (equal), as `difflib` measures it.

    Example:
        >>> nearest_name("gruop", ["group", "batch"]), nearest_name("zzz", ["group", "batch"])
        ('group', None)
    """
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name if one is near, else a full stop.

    Example:
        >>> did_you_mean("gruop", ["group", "batch"]), did_you_mean("zzz", ["group", "batch"])
        ("; did you mean 'group'?", '.')
    """
    near = nearest_name(name, known)
    return "." if near is None else f"; did you mean {near!r}?"
