"""Heat maps of layers (in forward order) by step; the cells are one embedded picture, the labels stay text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.cells import cell_edges, colour_bar, colours, merge_columns, rows_to_show
from ics_apps.reports.layers import layer_grid
from ics_apps.reports.svg import INK, SOFT, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.layers import Grid

FEW_STEPS: Final = 8  # each of so few samples gets its own tick

KIND_COLOURS: Final = {
    "norm": "#0072B2",
    "conv": "#E69F00",
    "linear": "#D55E00",
    "activation": "#009E73",
    "stream": "#CC79A7",
}
_OTHER: Final = "#8C8C8C"
_NOT_MEASURED: Final = "#e3e7eb"
_WIDTH: Final = 10.4
_HEAD: Final = 0.62
_FOOT: Final = 0.48


@dataclass(frozen=True)
class Map:
    """What a heat map of the page shows: a column of the monitor, its colour scale (see `heat_map`) and its words."""

    column: str
    scale: str
    unit: str
    caption: str
    fold: str = ""


def draw_map(monitor: Any, what: Map, floor: float = -np.inf) -> Drawing | None:
    """Draw a column of the monitor; None where nothing was measured. Layers below `floor` are left out."""
    grid = layer_grid(monitor, what.column, floor)
    return None if grid is None else heat_map(grid, what.column, what.scale, what.unit, what.caption, what.fold)


def heat_map(grid: Grid, name: str, scale: str, unit: str, caption: str, fold: str = "") -> Drawing | None:
    """Draw a grid of layers by steps.

    Args:
        grid: The values.
        name: Prefix of ids, unique on the page.
        scale: "log" (values > 0, viridis), "share" (0 to 1, viridis), "small_share" (0 to what is needed), or
            "around_one" (> 0, log, two colours).
        unit: Label of the colour bar, with its unit.
        caption: What is drawn.
        fold: Title under which the figure is folded away.

    Returns:
        The drawing; None where no value can be drawn on this scale (a log scale without a value above 0).
    """
    from matplotlib.figure import Figure

    rows = rows_to_show(grid.values)
    steps, values = merge_columns(grid.steps, grid.values[rows])
    norm_and_map = colours(values, scale)
    if norm_and_map is None:
        return None
    norm, colour_map, extend = norm_and_map
    labels = [shorten(grid.labels[row]) for row in rows]
    cell = 0.165 if len(rows) > 14 else 0.24
    height = _HEAD + _FOOT + cell * len(rows)
    left = 0.34 + 0.059 * max(map(len, labels))
    with figure_style():
        figure = Figure(figsize=(_WIDTH, height))
        box = (left / _WIDTH, _FOOT / height, 1 - (left + 0.15) / _WIDTH, cell * len(rows) / height)
        axes, mesh = draw_cells(figure, box, steps, values, norm, colour_map)
        label_axes(axes, labels, steps, pad=9)
        _mark_kinds(figure, box, [grid.kinds[row] for row in rows])
        bar_axes = figure.add_axes((1 - 3.15 / _WIDTH, 1 - 0.42 / height, 3.0 / _WIDTH, 0.1 / height))
        colour_bar(figure, mesh, bar_axes, scale, unit, extend)
        figure.set_dpi(72)
        svg = inline_svg(figure, name, f"Heat map of {len(rows)} layers by {len(steps)} steps: {unit}.")
    return Drawing(svg, _full_caption(caption, grid, len(rows), len(steps)), fold=fold)


def _full_caption(caption: str, grid: Grid, rows: int, columns: int) -> str:
    parts = [caption, "Layers run from the input (top) to the output (bottom); grey: not measured."]
    if rows < len(grid.labels):
        parts.append(f"The {rows} layers with the largest values of {len(grid.labels)} are drawn.")
    if columns < len(grid.steps):
        parts.append(f"Each column shows the largest of up to {-(-len(grid.steps) // columns)} samples.")
    return " ".join(parts)


def draw_cells(
    figure: Any,
    box: tuple[float, float, float, float],
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    norm: Any,
    colour_map: Any,
) -> tuple[Any, Any]:
    """Draw the cells of a map of layers by steps into a box of the figure; returns the axes and the mesh."""
    axes = figure.add_axes(box, facecolor=_NOT_MEASURED)
    mesh = axes.pcolormesh(
        cell_edges(steps),
        np.arange(len(values) + 1),
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=colour_map,
        rasterized=True,
    )
    return axes, mesh


def label_axes(axes: Any, labels: list[str], steps: NDArray[np.int64], pad: float | None = None) -> None:
    """Name the layers beside their rows, and the steps below; `pad` is the room between, in points."""
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=7.4, color=INK)
    axes.tick_params(axis="y", length=0, **({} if pad is None else {"pad": pad}))
    axes.invert_yaxis()
    axes.set_xlabel("step")
    if len(steps) <= FEW_STEPS:
        axes.set_xticks(steps)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark_kinds(figure: Any, box: tuple[float, float, float, float], kinds: list[str]) -> None:
    """Draw a strip that tells a layer's kind beside its label, and its key above the map."""
    from matplotlib.patches import Rectangle

    strip = figure.add_axes((box[0] - 0.1 / _WIDTH, box[1], 0.065 / _WIDTH, box[3]))
    for row, kind in enumerate(kinds):
        strip.add_patch(Rectangle((0, row + 0.08), 1, 0.84, color=KIND_COLOURS.get(kind, _OTHER), linewidth=0))
    strip.set_xlim(0, 1)
    strip.set_ylim(len(kinds), 0)
    strip.set_axis_off()
    present = [kind for kind in KIND_COLOURS if kind in kinds]
    handles = [Rectangle((0, 0), 1, 1, color=KIND_COLOURS[kind], linewidth=0) for kind in present]
    if any(kind not in KIND_COLOURS for kind in kinds):
        present.append("other")
        handles.append(Rectangle((0, 0), 1, 1, color=_OTHER, linewidth=0))
    figure.legend(
        handles,
        present,
        loc="lower left",
        bbox_to_anchor=(0.0, box[1] + box[3] + 0.04 / figure.get_figheight()),
        ncols=len(present),
        handlelength=0.7,
        handleheight=0.7,
        columnspacing=1.1,
        handletextpad=0.4,
        borderaxespad=0.0,
        labelcolor=SOFT,
    )
