"""Charts with one line a run: the same metric over each other, and the median layer's drift."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ics_apps.reports.axes import log_axis, running_mean, step_axis, thin
from ics_apps.reports.layers import layer_grid
from ics_apps.reports.metric_files import Series
from ics_apps.reports.svg import COLOURS, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import higher_is_better, split_stage, tick

if TYPE_CHECKING:
    from ics_apps.reports.run_files import RunFiles

MAX_CHARTS: Final = 6

_WIDTH: Final = 5.1
_SMOOTH_FROM: Final = 40
_DASHES: Final = ("-", (0, (5, 2)), (0, (1, 1.5)))


def metric_overlays(runs: Sequence[RunFiles], labels: Sequence[str]) -> tuple[list[Drawing], list[str]]:
    """Draw each metric of training and validation with one line a run.

    Args:
        runs: Runs.
        labels: Their labels.

    Returns:
        The drawings, totals before classes, and the names of the metrics that are not drawn.
    """
    names = {
        name
        for run in runs
        for name, series in run.curves.items()
        if split_stage(name)[0] in ("train", "val") and np.isfinite(series.values).any()
    }
    ordered = sorted(names, key=_rank)
    drawings = [
        run_lines([run.curves.get(name) for run in runs], labels, f"metric-{place}", f"{name}.")
        for place, name in enumerate(ordered[:MAX_CHARTS])
    ]
    return drawings, ordered[MAX_CHARTS:]


def median_over_layers(run: RunFiles, column: str, common: Collection[str]) -> Series | None:
    """Take the median over layers of a column of the monitor at each step; over `common` layers where there are any."""
    grid = None if run.monitor is None else layer_grid(run.monitor, column)
    if grid is None:
        return None
    rows = [place for place, label in enumerate(grid.labels) if not common or label in common]
    values = grid.values[rows]
    measured = np.isfinite(values).any(axis=0)
    if not measured.any():
        return None
    return Series(column, grid.steps[measured], np.nanmedian(values[:, measured], axis=0))


def run_lines(
    curves: Sequence[Series | None], labels: Sequence[str], name: str, caption: str, *, log: bool = False
) -> Drawing:
    """Draw one line a run.

    Args:
        curves: One series a run; None where a run has none.
        labels: Labels of the runs.
        name: Prefix of ids, unique on the page.
        caption: What is drawn.
        log: True for a logarithmic value axis; values that are not above 0 are not drawn.

    Returns:
        The drawing, half a page wide; a run has the same colour in each.
    """
    from matplotlib.figure import Figure

    columns = max(1, int(_WIDTH / (0.55 + 0.075 * max(map(len, labels)))))
    legend_rows = math.ceil(sum(curve is not None for curve in curves) / columns)
    height = 2.5 + 0.17 * (legend_rows - 1)
    with figure_style():
        figure = Figure(figsize=(_WIDTH, height))
        bottom, top, left = 0.45 / height, (0.2 + 0.17 * legend_rows) / height, 0.66 / _WIDTH
        axes = figure.add_axes((left, bottom, 1 - left - 0.15 / _WIDTH, 1 - bottom - top))
        smooth = False
        for place, (series, label) in enumerate(zip(curves, labels, strict=True)):
            if series is None:
                continue
            if split_stage(series.name)[0] == "train" and len(series.values) >= _SMOOTH_FROM:
                series = Series(series.name, series.steps, running_mean(series.values))  # noqa: PLW2901
                smooth = True
            steps, values = thin(series)
            if log:
                values = np.where(values > 0, values, np.nan)
            axes.plot(
                steps,
                values,
                color=COLOURS[place % len(COLOURS)],
                linestyle=_DASHES[place // len(COLOURS) % len(_DASHES)],
                linewidth=1.5,
                marker="o",
                markersize=2.8 if len(steps) < 30 else 0,
                label="\u200b" + label,  # matplotlib drops labels that begin with an underscore
            )
        if log and any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            log_axis(axes)
        else:
            axes.yaxis.set_major_formatter(lambda value, _: tick(value))
        step_axis(axes)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, borderaxespad=0.1, columnspacing=1.4)
        svg = inline_svg(figure, name, f"Line chart by step, one line a run: {caption}")
    smoothed = " Running mean over a twentieth of the values." if smooth else ""
    return Drawing(svg, caption + smoothed, wide=False)


def _rank(name: str) -> tuple[bool, bool, bool, bool, str]:
    stage, metric = split_stage(name)
    unknown = higher_is_better(name) is None
    return unknown, "/" in metric, stage != "val", "loss" in metric, name
