"""What every heat map needs: how many cells fit, where their borders are, and what their colours mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.svg import SOFT, log_ticks
from ics_apps.reports.wording import tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ROWS: Final = 90
MAX_COLUMNS: Final = 400
DECADES: Final = 4  # a log colour scale spans at most this many, or the few smallest values take most of it

_SHARE_TOPS: Final = (0.1, 0.25, 0.5)


def rows_to_show(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Choose the rows with the largest values where there are more than a map can hold."""
    if len(values) <= MAX_ROWS:
        return np.arange(len(values))
    peaks = np.where(np.isfinite(values), values, -np.inf).max(axis=1)
    return np.sort(np.argsort(-peaks, kind="stable")[:MAX_ROWS])


def merge_columns(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Join neighbouring samples by their largest value, so that no peak is lost."""
    if len(steps) <= MAX_COLUMNS:
        return steps, values
    blocks = np.array_split(np.arange(len(steps)), MAX_COLUMNS)
    largest = np.stack([np.where(np.isnan(values[:, b]), -np.inf, values[:, b]).max(axis=1) for b in blocks], axis=1)
    return np.array([steps[b[0]] for b in blocks]), np.where(np.isneginf(largest), np.nan, largest)


def cell_edges(steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Borders half way between samples; the outer cells are as wide as their neighbours."""
    centres = steps.astype(np.float64)
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def colours(values: NDArray[np.float64], scale: str) -> tuple[Any, Any, str] | None:
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


def colour_bar(figure: Any, mesh: Any, axes: Any, scale: str, unit: str, extend: str) -> None:
    """Draw the colour scale of a mesh, flat, with its unit above its right end."""
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
