"""What a page is made of: the parts that the template shows, already in words and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ics_apps.reports.panels import EmbeddedPicture

if TYPE_CHECKING:
    from markupsafe import Markup

    from ics_apps.reports.svg import Drawing


@dataclass(frozen=True)
class Figure:
    """A figure as the template shows it."""

    svg: Markup
    caption: str
    wide: bool
    fold: str


@dataclass(frozen=True)
class Table:
    """A table: the first column is a name, the others are shown as given; `best` are (row, column) to mark."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    fold: str = ""
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Case:
    """One case with its pictures; `line` is its heading."""

    line: str
    pictures: tuple[EmbeddedPicture, ...]


@dataclass(frozen=True)
class Section:
    """One part of the page; `missing` says why there is nothing to show."""

    id: str
    title: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    cases: tuple[Case, ...] = ()
    text: str = ""
    text_fold: str = ""
    missing: str = ""
    note: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that the template needs."""

    title: str
    recipe: str
    status: str
    tiles: tuple[tuple[str, str], ...]
    tiles_note: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    reading: tuple[str, ...]  # paragraphs
    sections: tuple[Section, ...]
    source: str = "the run"


def as_figures(*drawings: Drawing | None) -> tuple[Figure, ...]:
    """Make drawings what the template shows; those that could not be drawn (None) are left out."""
    from markupsafe import Markup

    # The SVG is markup that `svg.inline_svg` serialised, with its text escaped.
    return tuple(Figure(Markup(d.svg), d.caption, d.wide, d.fold) for d in drawings if d is not None)  # noqa: S704
