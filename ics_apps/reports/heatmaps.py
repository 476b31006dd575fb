"""Heat maps of layers (in forward order) by step; the cells are one embedded picture, the labels stay text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.svg import INK, SOFT, Drawing, figure_style, inline_svg, log_ticks
from ics_apps.reports.wording import shorten, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.layers import Grid

MAX_ROWS: Final = 90
MAX_COLUMNS: Final = 400
FEW_STEPS: Final = 8  # each of so few samples gets its own tick
DECADES: Final = 4  # a log colour scale spans at most this many, or the few smallest values take most of it

KIND_COLOURS: Final = {
    "norm": "#0072B2",
    "conv": "#E69F00",
    "linear": "#D55E00",
    "activation": "#009E73",
    "stream": "#CC79A7",
}
_SHARE_TOPS: Final = (0.1, 0.25, 0.5)
_OTHER: Final = "#8C8C8C"
_NOT_MEASURED: Final = "#e3e7eb"
_WIDTH: Final = 10.4
_HEAD: Final = 0.62
_FOOT: Final = 0.48


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

    rows = _rows_to_show(grid.values)
    steps, values = _merge_columns(grid.steps, grid.values[rows])
    norm_and_map = _colours(values, scale)
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
        axes = figure.add_axes(box, facecolor=_NOT_MEASURED)
        mesh = axes.pcolormesh(
            _edges(steps),
            np.arange(len(rows) + 1),
            np.ma.masked_invalid(values),
            norm=norm,
            cmap=colour_map,
            rasterized=True,
        )
        _label_axes(axes, labels, steps)
        _mark_kinds(figure, box, [grid.kinds[row] for row in rows])
        bar_axes = figure.add_axes((1 - 3.15 / _WIDTH, 1 - 0.42 / height, 3.0 / _WIDTH, 0.1 / height))
        _colour_bar(figure, mesh, bar_axes, scale, unit, extend)
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


def _rows_to_show(values: NDArray[np.float64]) -> NDArray[np.intp]:
    if len(values) <= MAX_ROWS:
        return np.arange(len(values))
    peaks = np.where(np.isfinite(values), values, -np.inf).max(axis=1)
    return np.sort(np.argsort(-peaks, kind="stable")[:MAX_ROWS])


def _merge_columns(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Join neighbouring samples by their largest value, so that no peak is lost."""
    if len(steps) <= MAX_COLUMNS:
        return steps, values
    blocks = np.array_split(np.arange(len(steps)), MAX_COLUMNS)
    largest = np.stack([np.where(np.isnan(values[:, b]), -np.inf, values[:, b]).max(axis=1) for b in blocks], axis=1)
    return np.array([steps[b[0]] for b in blocks]), np.where(np.isneginf(largest), np.nan, largest)


def _edges(steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Borders half way between samples; the outer cells are as wide as their neighbours."""
    centres = steps.astype(np.float64)
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _colours(values: NDArray[np.float64], scale: str) -> tuple[Any, Any, str] | None:
    """Choose the colour scale and whether values lie beyond its ends."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    if scale == "share":
        return Normalize(0.0, 1.0), colormaps["viridis"], "neither"
    if scale == "small_share":
        top = next((top for top in _SHARE_TOPS if finite.max() <= top), 1.0)
        return Normalize(0.0, top), colormaps["viridis"], "neither"
    positive = finite[finite > 0]
    if not len(positive):
        return None
    if scale == "around_one":
        reach = float(np.clip(np.abs(np.log10(np.percentile(positive, [1, 99]))).max(), 0.05, DECADES / 2))
        low, high = 10.0**-reach, 10.0**reach
        colour_map = colormaps["PuOr_r"]
    else:
        high = float(positive.max())
        low = max(float(positive.min()), high / 10.0**DECADES)
        low = min(low, high / 2)
        colour_map = colormaps["viridis"]
    below, above = bool((finite < low).any()), bool((finite > high).any())
    values[values < low] = low  # a log scale would drop a zero, which is the calmest value there is
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]
    return LogNorm(low, high, clip=True), colour_map, extend


def _label_axes(axes: Any, labels: list[str], steps: NDArray[np.int64]) -> None:
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=7.4, color=INK)
    axes.tick_params(axis="y", length=0, pad=9)
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


def _colour_bar(figure: Any, mesh: Any, axes: Any, scale: str, unit: str, extend: str) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    bar = figure.colorbar(mesh, cax=axes, orientation="horizontal", extend=extend)
    bar.outline.set_visible(False)
    low, high = mesh.norm.vmin, mesh.norm.vmax
    ticks = [high * fifth / 5 for fifth in range(6)] if "share" in scale else log_ticks(low, high)
    bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_major_formatter(lambda value, _: tick(value))
    bar.ax.tick_params(labelsize=7, length=2, pad=1.5)
    bar.ax.set_title(unit, fontsize=7.6, color=SOFT, loc="right", pad=3)
