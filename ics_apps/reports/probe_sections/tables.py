"""What the sections of probes share: tables of the latest figures by layer, and words for the layer that stands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.layers import labels_of
from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.wording import number, printable, tick

if TYPE_CHECKING:
    from ics_apps.reports.layers import Grid
    from ics_apps.reports.svg import Drawing

NONE: Final = "\N{EN DASH}"


def layer_section(
    name: str, title: str, drawings: tuple[Drawing | None, ...], table: Any, columns: dict[str, str], nothing: str
) -> Section:
    """Build a section of drawings and the folded table of a probe; `nothing` says what it lacks without any drawing."""
    figures = as_figures(*drawings)
    missing = "" if figures else f"{nothing}: probes/{name}.csv holds no such figure."
    return Section(name, title, figures=figures, tables=(_last_table(table, columns),), missing=missing)


def _last_table(table: Any, columns: dict[str, str]) -> Table:
    """Show each layer's latest figures, by their place."""
    latest = table.drop_duplicates("place", keep="last").sort_values("place")
    rows = tuple(
        (printable(name), *(value_of(value) for value in values))
        for name, values in zip(labels_of(latest), latest[[*columns.values()]].to_numpy(), strict=True)
    )
    title = f"All {len(rows)} layers in numbers, at their last measurement"
    return Table(("layer", *columns), rows, fold=title if len(rows) > 1 else "The layer in numbers")


def value_of(value: float) -> str:
    """Spell a figure; a dash where it is not defined, and counts as counts."""
    if np.isnan(value):
        return NONE
    return str(int(value)) if value == int(min(abs(value), 1e6)) else number(value)


def damping_of(table: Any) -> str:
    """Say the damping of a condition number: one figure, or from the least to the most; "" where it is not known."""
    values = table["damping"].to_numpy()
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    low, high = (tick(float(f"{end:.2g}")) for end in (values.min(), values.max()))
    return f"damping {low}" if low == high else f"damping {low} to {high}"


def largest(grid: Grid) -> tuple[str, float, float]:
    """Find the layer with the largest value at the last step: its label, the value, and the median over layers."""
    last = grid.values[:, -1]
    most = int(np.nanargmax(last))
    return grid.labels[most], float(last[most]), float(np.nanmedian(last))
