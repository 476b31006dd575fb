"""Heat maps of what probes measured, layer by step, under their own title; layers here have no kind to mark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.cells import colour_bar, colours, merge_columns, rows_to_show
from ics_apps.reports.heatmaps import draw_cells, label_axes
from ics_apps.reports.svg import INK, SOFT, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import shorten, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.layers import Grid

_WIDTH: Final = 10.4
_HEAD: Final = 0.62
_FOOT: Final = 0.48


@dataclass(frozen=True)
class ProbeMap:
    """What a heat map of the page says about itself.

    Attributes:
        name: Prefix of ids, unique on the page.
        title: What is drawn, a few words.
        unit: Label of the colour bar, with its unit.
        caption: What a colour means, in a sentence.
        scale: "log" (values > 0), "around_one" (> 0, log, two colours) or "linear".
        lowest: Whether low values are the telling ones, which are then kept where rows or columns have to be joined.
        fold: Title under which the figure is folded away.
    """

    name: str
    title: str
    unit: str
    caption: str
    scale: str = "log"
    lowest: bool = False
    fold: str = ""


def probe_map(grid: Grid | None, what: ProbeMap, reading: str = "") -> Drawing | None:
    """Draw a grid of layers by steps; `reading` opens its caption.

    Returns:
        The drawing; None without a grid, or where no value can be drawn (a log scale without a value above 0).
    """
    if grid is None:
        return None
    sign = -1.0 if what.lowest else 1.0
    rows = rows_to_show(sign * grid.values)
    steps, values = merge_columns(grid.steps, sign * grid.values[rows])
    values = sign * values
    scale = _linear(values) if what.scale == "linear" else colours(values, what.scale)
    if scale is None:
        return None
    labels = [shorten(grid.labels[row]) for row in rows]
    caption = " ".join(part for part in (reading, what.caption, _what_is_shown(grid, len(rows), len(steps))) if part)
    return Drawing(_draw(labels, steps, values, scale, what), caption, fold=what.fold)


def _linear(values: NDArray[np.float64]) -> tuple[Any, Any, str]:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.0 if high > low else 0.05 * max(abs(low), 1.0)
    return Normalize(low - margin, high + margin), colormaps["viridis"], "neither"


def _draw(
    labels: list[str],
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    scale: tuple[Any, Any, str],
    what: ProbeMap,
) -> str:
    from matplotlib.figure import Figure

    norm, colour_map, extend = scale
    cell = 0.165 if len(labels) > 14 else 0.24
    height = _HEAD + _FOOT + cell * len(labels)
    left = 0.24 + 0.059 * max(map(len, labels))
    with figure_style():
        figure = Figure(figsize=(_WIDTH, height))
        box = (left / _WIDTH, _FOOT / height, 1 - (left + 0.15) / _WIDTH, cell * len(labels) / height)
        axes, mesh = draw_cells(figure, box, steps, values, norm, colour_map)
        label_axes(axes, labels, steps)
        figure.text(0.004, 1 - 0.2 / height, what.title, fontsize=9, fontweight="bold", color=INK, va="center")
        bar_axes = figure.add_axes((1 - 3.15 / _WIDTH, 1 - 0.42 / height, 3.0 / _WIDTH, 0.1 / height))
        if what.scale == "linear":
            _linear_bar(figure, mesh, bar_axes, what.unit)
        else:
            colour_bar(figure, mesh, bar_axes, what.scale, what.unit, extend)
        figure.set_dpi(72)
        alt = f"{what.title}: heat map of {len(labels)} layers by {len(steps)} steps, {what.unit}."
        return inline_svg(figure, what.name, alt)


def _linear_bar(figure: Any, mesh: Any, axes: Any, unit: str) -> None:
    """Draw a linear colour scale as `colour_bar` draws a logarithmic one."""
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(mesh, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    bar.ax.xaxis.set_major_formatter(lambda value, _: tick(value))
    bar.ax.tick_params(labelsize=7, length=2, pad=1.5)
    bar.ax.set_title(unit, fontsize=7.6, color=SOFT, loc="right", pad=3)


def _what_is_shown(grid: Grid, rows: int, columns: int) -> str:
    parts = ["Layers run from the input (top) to the output (bottom); grey: not measured."]
    if rows < len(grid.labels):
        parts.append(f"The {rows} most telling layers of {len(grid.labels)} are drawn.")
    if columns < len(grid.steps):
        parts.append(f"Each column shows the most telling of up to {-(-len(grid.steps) // columns)} measurements.")
    return " ".join(parts)
