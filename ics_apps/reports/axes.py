"""Axes that every chart has: steps, logarithms, small multiples; and series thinned to what a page can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.svg import INK, log_ticks
from ics_apps.reports.wording import shorten, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.metric_files import Series

MAX_POINTS: Final = 600

_WIDTH: Final = 10.4
_PANEL_HEIGHT: Final = 1.5
_GAP: Final = 0.52


def small_multiples(titles: Sequence[str]) -> tuple[Any, list[Any]]:
    """Make a figure of up to three panels a row, each under its title; the lowest of a column has the step axis.

    Args:
        titles: One for each panel.

    Returns:
        The figure and its axes, in reading order.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(_WIDTH, 0.32 + rows * (_PANEL_HEIGHT + _GAP)))
    height = figure.get_figheight()
    panel_width = (_WIDTH - 0.1) / columns
    all_axes = []
    for place, title in enumerate(titles):
        row, column = divmod(place, columns)
        low = height - 0.28 - row * (_PANEL_HEIGHT + _GAP) - _PANEL_HEIGHT
        box = (0.55 + column * panel_width, low, panel_width - 0.65, _PANEL_HEIGHT)
        axes = figure.add_axes((box[0] / _WIDTH, box[1] / height, box[2] / _WIDTH, box[3] / height))
        axes.set_title(shorten(title), fontsize=8, color=INK, loc="left", pad=5)
        axes.yaxis.set_major_formatter(lambda value, _: tick(value))
        axes.locator_params(axis="y", nbins=5)
        step_axis(axes)
        if place + columns < len(titles):
            axes.set_xlabel("")
        all_axes.append(axes)
    return figure, all_axes


def focus(low: float, high: float, axes: Any) -> None:
    """Set the value axis to [low, high] and a margin around it, also where the two are equal."""
    span = high - low
    margin = 0.06 * span if span > 0 else max(abs(low) * 0.1, 1e-6)
    axes.set_ylim(low - margin, high + margin)


def thin(series: Series) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Keep the lowest and highest of each run of neighbours, so that no peak is lost."""
    steps, values = series.steps, series.values
    if len(steps) <= MAX_POINTS:
        return steps, values
    keep: set[int] = set()
    for block in np.array_split(np.arange(len(steps)), MAX_POINTS // 2):
        filled = np.where(np.isfinite(values[block]), values[block], 0.0)
        keep |= {int(block[np.argmin(filled)]), int(block[np.argmax(filled)])}
    chosen = np.array(sorted(keep))
    return steps[chosen], values[chosen]


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a centred window that shrinks at the ends; values that are not finite are left out of it."""
    width = max(3, len(values) // 20)
    finite = np.isfinite(values)
    window = np.ones(width)
    counts = np.convolve(finite, window, mode="same")
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def step_axis(axes: Any) -> None:
    """Name the axis of steps, whose ticks are whole numbers."""
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def log_axis(axes: Any) -> None:
    """Make the value axis logarithmic, with few round ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.get_ylim()
    axes.set_yscale("log")
    if low <= 0:
        low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    axes.yaxis.set_minor_locator(NullLocator())
