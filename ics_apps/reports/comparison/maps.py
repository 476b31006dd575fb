"""Heat maps of several runs beside each other: the same layers, the same colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.cells import cell_edges, colour_bar, colours, merge_columns, rows_to_show
from ics_apps.reports.svg import INK, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import shorten

if TYPE_CHECKING:
    from ics_apps.reports.heatmaps import Map
    from ics_apps.reports.layers import Grid

ACROSS: Final = 4  # runs in one figure

_WIDTH: Final = 10.4
_HEAD: Final = 0.78
_FOOT: Final = 0.48
_GAP: Final = 0.14
_NOT_MEASURED: Final = "#e3e7eb"


def common_labels(grids: Sequence[Grid]) -> tuple[str, ...]:
    """Find the rows that all grids have, in the order of the first."""
    return tuple(label for label in grids[0].labels if all(label in grid.labels for grid in grids)) if grids else ()


def side_by_side(grids: Sequence[Grid], labels: Sequence[str], what: Map) -> list[Drawing]:
    """Draw a map a run, rows in common, on one colour scale.

    Args:
        grids: One a run.
        labels: Labels of these runs.
        what: What is drawn.

    Returns:
        Drawings of up to four runs each; none where no layer is common or nothing can be drawn.
    """
    rows = common_labels(grids)
    if not rows:
        return []
    values = [grid.values[[grid.labels.index(label) for label in rows]] for grid in grids]
    chosen = rows_to_show(np.concatenate(values, axis=1))
    cut = [merge_columns(grid.steps, own[chosen]) for grid, own in zip(grids, values, strict=True)]
    scale = colours(np.concatenate([own.ravel() for _, own in cut]), what.scale)
    if scale is None:
        return []
    names = [rows[row] for row in chosen]
    caption = f"{what.caption} One colour scale for all runs, and each on its own axis of steps; grey: not measured."
    if len(names) < len(rows):
        caption += f" The {len(names)} layers with the largest values of {len(rows)} are drawn."
    return [
        Drawing(_draw(cut[start : start + ACROSS], labels[start : start + ACROSS], names, what, scale, start), caption)
        for start in range(0, len(cut), ACROSS)
    ]


def _draw(
    cut: Sequence[tuple[Any, Any]],
    labels: Sequence[str],
    names: Sequence[str],
    what: Map,
    scale: tuple[Any, Any, str],
    start: int,
) -> str:
    from matplotlib.figure import Figure

    norm, colour_map, extend = scale
    short = [shorten(name, 30) for name in names]
    cell = 0.165 if len(names) > 14 else 0.24
    height = _HEAD + _FOOT + cell * len(names)
    left = 0.24 + 0.059 * max(map(len, short))
    width = (_WIDTH - left - 0.15 - _GAP * (len(cut) - 1)) / len(cut)
    with figure_style():
        figure = Figure(figsize=(_WIDTH, height))
        for place, (steps, values) in enumerate(cut):
            low = (left + place * (width + _GAP)) / _WIDTH
            box = (low, _FOOT / height, width / _WIDTH, cell * len(names) / height)
            axes = figure.add_axes(box, facecolor=_NOT_MEASURED)
            mesh = axes.pcolormesh(
                cell_edges(steps),
                np.arange(len(names) + 1),
                np.ma.masked_invalid(np.clip(values, norm.vmin, norm.vmax)),
                norm=norm,
                cmap=colour_map,
                rasterized=True,
            )
            axes.set_title(shorten(labels[place], int(width / 0.065)), fontsize=8, color=INK, loc="left", pad=5)
            if place:
                axes.set_yticks([])
            else:
                axes.set_yticks(np.arange(len(names)) + 0.5, short, fontsize=7.4, color=INK)
            axes.tick_params(axis="y", length=0)
            axes.invert_yaxis()
            axes.set_xlabel("step")
            axes.locator_params(axis="x", nbins=max(2, int(width / 0.6)), integer=True)
            for spine in axes.spines.values():
                spine.set_visible(False)
        bar_axes = figure.add_axes((1 - 3.15 / _WIDTH, 1 - 0.36 / height, 3.0 / _WIDTH, 0.1 / height))
        colour_bar(figure, mesh, bar_axes, what.scale, what.unit, extend)
        figure.set_dpi(72)
        alt = f"Heat maps of {len(names)} layers by step for {', '.join(labels)}: {what.unit}."
        return inline_svg(figure, f"side-{what.column}-{start}", alt)
