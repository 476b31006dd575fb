"""The nearest right name for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, or a full stop.

    Example:
        >>> did_you_mean("grup", ["group", "batch"])
        '; did you mean group?'
        >>> did_you_mean("xyz", ["group", "batch"])
        '.'
    """
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "."
