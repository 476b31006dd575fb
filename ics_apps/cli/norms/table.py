"""The registry's entries and their promises as a table for people; pure functions from entries to lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from ics_apps.norms import NormEntry

# Order of the groups; families of plug-ins follow by name.
FAMILIES: Final = ("batch", "mixed", "sample", "conditional", "elementwise", "weight")


@dataclass(frozen=True)
class Promise:
    """A column of yes or no: two header lines, one letter for narrow terminals, its meaning, and its value."""

    header: tuple[str, str]
    letter: str
    meaning: str
    holds: Callable[[NormEntry], bool]


PROMISES: Final = (
    Promise(("mixes", "samples"), "M", "in training a sample sees the others", lambda e: e.mixes_samples),
    Promise(("", "state"), "S", "", lambda e: e.stateful),
    Promise(("scale", "invariant"), "I", "twice the layer before it, same output", lambda e: e.scale_invariant),
    Promise(("needs", "condition"), "C", "", lambda e: e.needs_condition),
    Promise(
        ("third", "derivative"), "D", "right; else take make_norm(..., smooth=True)", lambda e: e.thrice_differentiable
    ),
    Promise(("exact", "in bf16"), "B", "statistics in float32", lambda e: e.exact_in_bf16),
    Promise(("holds an", "activation"), "A", "", lambda e: e.contains_activation),
)  # fmt: skip

_YES, _NO = "yes", "-"
_GAP = "  "


def table_lines(entries: Sequence[NormEntry], width: int) -> list[str]:
    """The table: one row an entry, grouped by family, with its legend; fitted to `width` columns where that can be.

    Wide terminals get columns with names, narrow ones a letter a promise and, if need be, no family column (the groups
    stay). Lines are never cut.

    Example:
        >>> from ics_apps.norms import norm_entry
        >>> for line in table_lines([norm_entry("none")], 50)[:2]:
        ...     print(line)
        norm  family       pools  M S I C D B A
        none  elementwise  -      - - - - D B -
    """
    ordered = sorted(entries, key=lambda entry: (_rank(entry.family), entry.family, entry.name))
    for header, row, legend in ((_wide_header, _wide_row, _wide_legend), (_narrow_header, _narrow_row, _narrow_legend)):
        lines = _grid(header(), ordered, row)
        if max(map(len, lines)) <= width:
            return [*lines, "", *_fill(legend(), width)]
    without = [words[:1] + words[2:] for words in _narrow_header()]
    lines = _grid(without, ordered, lambda entry: _narrow_row(entry)[:1] + _narrow_row(entry)[2:])
    return [*lines, "", *_fill(_narrow_legend(), width)]


def _grid(
    header: list[tuple[str, ...]], entries: Sequence[NormEntry], row: Callable[[NormEntry], tuple[str, ...]]
) -> list[str]:
    groups = [[row(entry) for entry in group] for _, group in groupby(entries, key=lambda entry: entry.family)]
    everything = [*header, *(cells for group in groups for cells in group)]
    widths = [max(len(cells[column]) for cells in everything) for column in range(len(everything[0]))]

    def line(cells: tuple[str, ...]) -> str:
        return _GAP.join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()

    lines = [line(cells) for cells in header]
    for number, group in enumerate(groups):
        lines += [""] * (number > 0) + [line(cells) for cells in group]
    return lines


def _wide_header() -> list[tuple[str, ...]]:
    return [
        ("", "", "pools", *(promise.header[0] for promise in PROMISES)),
        ("norm", "family", "over", *(promise.header[1] for promise in PROMISES)),
    ]


def _wide_row(entry: NormEntry) -> tuple[str, ...]:
    return (entry.name, entry.family, _pools(entry), *(_mark(promise, entry, _YES) for promise in PROMISES))


def _wide_legend() -> str:
    named = "; ".join(f"{' '.join(p.header).strip()}: {p.meaning}" for p in PROMISES if p.meaning)
    return _legend(named[0].upper() + named[1:])


def _narrow_header() -> list[tuple[str, ...]]:
    return [("norm", "family", "pools", " ".join(promise.letter for promise in PROMISES))]


def _narrow_row(entry: NormEntry) -> tuple[str, ...]:
    marks = " ".join(_mark(promise, entry, promise.letter) for promise in PROMISES)
    return (entry.name, entry.family, _pools(entry), marks)


def _narrow_legend() -> str:
    names = [f"{p.letter} {' '.join(p.header).strip()}" for p in PROMISES]
    pairs = zip(names, PROMISES, strict=True)
    return _legend("; ".join(f"{name} ({p.meaning})" if p.meaning else name for name, p in pairs))


def _legend(promises: str) -> str:
    return (
        "Pools over the axes of one statistic: N samples, C channels, C/G channels of a group, S positions. "
        f"{promises}. `ics-apps norms describe NAME` tells more."
    )


def _pools(entry: NormEntry) -> str:
    if entry.acts_on_weight:
        return "weight"
    return ",".join(entry.pools) or _NO


def _mark(promise: Promise, entry: NormEntry, yes: str) -> str:
    return yes if promise.holds(entry) else _NO


def _rank(family: str) -> int:
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)


def _fill(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False)
