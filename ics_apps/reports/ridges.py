"""Histograms of a few layers over time: where their values lie, step by step, as small multiples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.axes import small_multiples
from ics_apps.reports.cells import MAX_COLUMNS, cell_edges
from ics_apps.reports.layers import label
from ics_apps.reports.monitor_files import KEY, read_histograms
from ics_apps.reports.svg import Drawing, figure_style, inline_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CELLS: Final = 72  # of the value axis

_REACH: Final = 1000.0  # outermost edges, in scales from the centre
_EDGES: Final = np.sinh(np.linspace(-math.asinh(_REACH), math.asinh(_REACH), 65))
_TAIL: Final = 0.02  # share of the values beyond each end of the value axis, at a usual step
_BLOT: Final = 95  # percentile of the cells that is drawn darkest, or the exact zeros of a ReLU would be all one sees


@dataclass(frozen=True)
class Ridge:
    """One layer's values over steps.

    Attributes:
        label: Label of the layer.
        steps: int64 (T,).
        edges: float64 (V + 1,), borders of the cells, in the layer's own units.
        shares: float64 (V, T), share of the step's values in each cell.
    """

    label: str
    steps: NDArray[np.int64]
    edges: NDArray[np.float64]
    shares: NDArray[np.float64]


def ridge_chart(folder: Path, monitor: Any, places: Sequence[int], name: str = "ridges") -> Drawing | None:
    """Draw the histograms of layers over steps.

    Args:
        folder: The monitor's folder.
        monitor: Its rows.
        places: Rows to draw, as `telling_places` gives them.
        name: Prefix of ids, unique on the page.

    Returns:
        The drawing; None where no histogram was written.
    """
    ridges = read_ridges(folder, monitor, places)
    if not ridges:
        return None
    ends = monitor["step"].iloc[0], monitor["step"].iloc[-1]
    with figure_style():
        figure, all_axes = small_multiples([ridge.label for ridge in ridges])
        for axes, ridge in zip(all_axes, ridges, strict=True):
            _draw(axes, ridge)
            if ends[0] < ends[1]:
                axes.set_xlim(*ends)
        figure.set_dpi(96)
        svg = inline_svg(figure, name, f"Histograms of {len(ridges)} layers by step.")
    return Drawing(
        svg,
        "Where a layer's values lie at each step: the darker, the more of them (each layer on its own scale). The axis "
        f"holds all but {2 * _TAIL:.0%} of the values of a usual step, in the layer's own units.",
    )


def read_ridges(folder: Path, monitor: Any, places: Sequence[int]) -> list[Ridge]:
    """Read the histograms of some rows and share their counts out over even cells; rows without any are left out."""
    keys = {place: tuple(monitor.loc[monitor["place"].to_numpy() == place, KEY].iloc[0].tolist()) for place in places}
    rows = read_histograms(folder, {key[0] for key in keys.values()}) if keys else None
    if rows is None:
        return []
    groups = {(str(layer), str(tag), int(call)): group for (layer, tag, call), group in rows.groupby(KEY)}
    ridges = [_ridge(label(*key), groups[key]) for key in keys.values() if key in groups]
    return [ridge for ridge in ridges if ridge is not None]


def _ridge(name: str, rows: Any) -> Ridge | None:
    r"""Spread each step's counts evenly within their bins.

    .. math:: edge_j = center + scale \sinh(t_j), \quad t = linspace(-asinh(1000), asinh(1000), 65)
    """
    counts = np.stack(rows["histogram"].to_list()).astype(np.float64)
    centre, scale = rows["hist_center"].to_numpy(np.float64), rows["hist_scale"].to_numpy(np.float64)
    total = counts.sum(axis=1)
    good = np.isfinite(centre) & np.isfinite(scale) & (scale > 0) & (counts[:, 1:-1].sum(axis=1) > 0)
    if not good.any():
        return None
    edges = centre[good, None] + scale[good, None] * _EDGES
    # The outer bins are wide: no value lies beyond the smallest and the largest one (NaN where not written).
    edges = np.fmax(np.fmin(edges, rows["max"].to_numpy()[good, None]), rows["min"].to_numpy()[good, None])
    below = np.cumsum(counts[good, :-1], axis=1) / total[good, None]
    tails = [np.interp([_TAIL, 1 - _TAIL], share, edge) for share, edge in zip(below, edges, strict=True)]
    low, high = np.percentile([tail[0] for tail in tails], 5), np.percentile([tail[1] for tail in tails], 95)
    if not high > low:
        return None
    borders = np.linspace(low, high, CELLS + 1)
    shares = np.diff([np.interp(borders, edge, share) for share, edge in zip(below, edges, strict=True)], axis=1).T
    steps = rows["step"].to_numpy(np.int64)[good]
    if len(steps) > MAX_COLUMNS // 2:
        blocks = np.array_split(np.arange(len(steps)), MAX_COLUMNS // 2)
        shares = np.stack([shares[:, block].mean(axis=1) for block in blocks], axis=1)
        steps = np.array([steps[block[0]] for block in blocks])
    return Ridge(name, steps, borders, shares)


def _draw(axes: Any, ridge: Ridge) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    top = float(np.percentile(ridge.shares[ridge.shares > 0], _BLOT)) if (ridge.shares > 0).any() else 1.0
    axes.pcolormesh(
        cell_edges(ridge.steps),
        ridge.edges,
        ridge.shares,
        norm=PowerNorm(0.6, 0, top, clip=True),
        cmap=colormaps["Blues"],
        rasterized=True,
    )
