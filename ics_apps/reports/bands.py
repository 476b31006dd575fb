"""Percentile bands of a few layers over steps, as small multiples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.axes import MAX_POINTS, focus, small_multiples
from ics_apps.reports.layers import labels_of
from ics_apps.reports.svg import COLOURS, Drawing, figure_style, inline_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

QUANTILES: Final = ("q15", "q50", "q85")

_REACH: Final = 4  # a band this many times wider than most of the run leaves the axis, or the rest would be a line


def band_chart(monitor: Any, places: Sequence[int], name: str = "bands") -> Drawing | None:
    """Draw the median and the 15th to 85th percentile of layers over steps.

    Args:
        monitor: Rows of the monitor.
        places: Rows to draw, as `telling_places` gives them.
        name: Prefix of ids, unique on the page.

    Returns:
        The drawing; None where there is nothing to draw.

    Reference: Ioffe & Szegedy 2015, Fig. 1b and 1c.
    """
    if not places:
        return None
    groups = [monitor[monitor["place"].to_numpy() == place] for place in places]
    labels = [labels_of(group.iloc[-1:])[0] for group in groups]
    ends = monitor["step"].iloc[0], monitor["step"].iloc[-1]
    cut = []
    with figure_style():
        figure, all_axes = small_multiples(labels)
        for axes, group in zip(all_axes, groups, strict=True):
            stride = -(-len(group) // MAX_POINTS)
            steps = group["step"].to_numpy()[::stride]
            quantiles = group[list(QUANTILES)].to_numpy()[::stride].T
            cut.append(_draw(axes, steps, np.where(np.isfinite(quantiles), quantiles, np.nan)))
            if ends[0] < ends[1]:
                axes.set_xlim(*ends)
        svg = inline_svg(figure, name, f"Percentile bands of {len(places)} layers by step.")
    caption = (
        "Line: median of a layer's output; band: its 15th to 85th percentile, in the layer's own units. "
        "Drawn are the first and the last layer and those that moved furthest from their first sample."
    )
    if any(cut):
        caption += " Where a band leaves the axis, it grew to several times its usual width."
    return Drawing(svg, caption)


def _draw(axes: Any, steps: NDArray[np.int64], quantiles: NDArray[np.float64]) -> bool:
    """Draw one layer; say whether the axis leaves something out."""
    low, middle, high = quantiles
    if len(steps) == 1:
        axes.vlines(steps, low, high, color=COLOURS[0], alpha=0.4, linewidth=6)
        axes.plot(steps, middle, color=COLOURS[0], marker="_", markersize=12)
    else:
        axes.fill_between(steps, low, high, color=COLOURS[0], alpha=0.22, linewidth=0)
        axes.plot(steps, middle, color=COLOURS[0], linewidth=1.3)
    axes.grid(axis="y")
    ends = np.array([np.nanmin(low), np.nanmax(high)])
    usual = np.array([np.nanpercentile(low, 5), np.nanpercentile(high, 95)])
    span = usual[1] - usual[0]
    cut = bool(span > 0 and ends[1] - ends[0] > _REACH * span)
    low_end, high_end = usual if cut else ends
    focus(float(low_end), float(high_end), axes)
    return cut
