"""Line charts over the steps of a run: losses, each other metric, and the ratio of streams."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.axes import log_axis, running_mean, step_axis, thin
from ics_apps.reports.reading import best_point
from ics_apps.reports.svg import COLOURS, INK, SOFT, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import higher_is_better, number, shorten, split_stage, tick

if TYPE_CHECKING:
    from ics_apps.reports.metric_files import Series

MAX_LINES: Final = 8
LABEL_WIDTH: Final = 30

_SMOOTH_FROM: Final = 40  # with fewer points a running mean hides more than it shows
_PAPER: Final = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8}  # under text that lines cross
_TRAILING: Final = re.compile(r"(_step|_epoch)$")


def metric_charts(curves: Mapping[str, Series]) -> list[Drawing]:
    """Draw the logged metrics: losses together and wide, then one small chart for each other metric.

    Args:
        curves: Series by logged name, `stage/metric`; test values have no course and are left out.

    Returns:
        Drawings, losses first, then metrics that were validated, then the rest by name.
    """
    groups: dict[str, list[Series]] = {}
    for name, series in curves.items():
        if split_stage(name)[0] not in ("test", "predict"):
            groups.setdefault(_group(name), []).append(series)
    ordered = sorted(groups, key=lambda group: (group != "loss", not _validated(groups[group]), group))
    return [_metric_chart(group, groups[group], f"curve-{i}") for i, group in enumerate(ordered)]


def ratio_chart(ratios: Sequence[Series]) -> Drawing:
    """Draw RMS(skip)/RMS(up) of each level on a log axis, with a line at 1.

    Args:
        ratios: One series a level, in forward order, each value > 0.

    Returns:
        The drawing.
    """
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(10.4, 3.2))
        axes = figure.add_axes((0.065, 0.155, 0.72, 0.8))
        shown = sorted(ratios, key=lambda series: -float(series.values[-1]))
        for series in shown:
            place = ratios.index(series)
            steps, values = thin(series)
            axes.plot(
                steps,
                values,
                color=COLOURS[place % len(COLOURS)],
                linewidth=1.4,
                linestyle=_dash(place),
                marker="o" if len(steps) == 1 else "",
                markersize=4,
                label="\u200b" + f"{shorten(series.name, 22)}: {number(float(series.values[-1]))}",
            )
        low = min(1.0, *(float(series.values.min()) for series in ratios)) / 1.2
        high = max(1.0, *(float(series.values.max()) for series in ratios)) * 1.2
        axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_ylim(low, high)
        log_axis(axes)
        step_axis(axes)
        axes.set_ylabel("RMS(skip) / RMS(up)")
        axes.grid(axis="y")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), title="level: last value", alignment="left")
        svg = inline_svg(figure, "ratio", f"Line chart of RMS(skip)/RMS(up) by step for {len(ratios)} levels.")
    return Drawing(
        svg,
        "RMS of the skip stream divided by the RMS of the up stream, as both enter the concatenation (log axis). "
        "Above 1 the skip stream is the louder one, below 1 the up stream.",
    )


def _group(name: str) -> str:
    metric = _TRAILING.sub("", split_stage(name)[1].split("/")[0])
    if "loss" in metric:
        return "loss"
    return "lr" if re.match(r"lr\b", metric) else metric


def _validated(group: Sequence[Series]) -> bool:
    return any(split_stage(series.name)[0] == "val" for series in group)


def _metric_chart(group: str, members: Sequence[Series], name: str) -> Drawing:
    from matplotlib.figure import Figure

    lines = sorted(members, key=lambda series: series.name.count("/"))[:MAX_LINES]
    wide = group == "loss"
    width, height = (10.4, 3.1) if wide else (5.1, 2.5)
    labels = _labels(lines)
    columns = max(1, int(width / (0.55 + 0.075 * max(map(len, labels)))))
    legend_rows = math.ceil(len(lines) / columns)
    with figure_style():
        figure = Figure(figsize=(width, height + 0.17 * (legend_rows - 1)))
        inches_high = figure.get_figheight()
        bottom, top, left = 0.45 / inches_high, (0.2 + 0.17 * legend_rows) / inches_high, 0.66 / width
        axes = figure.add_axes((left, bottom, 1 - left - 0.15 / width, 1 - bottom - top))
        smoothed = [_draw_line(axes, line, labels[place], COLOURS[place]) for place, line in enumerate(lines)]
        _mark_best(axes, lines[0])
        if _spans_decades(lines) and wide:
            log_axis(axes)
        else:
            axes.yaxis.set_major_formatter(lambda value, _: tick(value))
        step_axis(axes)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=columns,
            borderaxespad=0.1,
            columnspacing=1.4,
            handlelength=1.6,
        )
        svg = inline_svg(figure, name, f"Line chart of {', '.join(line.name for line in lines)} by step.")
    return Drawing(svg, _metric_caption(group, len(lines), len(members), any(smoothed), lines[0]), wide=wide)


def _metric_caption(group: str, shown: int, total: int, smoothed: bool, first: Series) -> str:
    parts = ["Losses" if group == "loss" else "Learning rate" if group == "lr" else group]
    if smoothed:
        parts.append("bold: running mean over a twentieth of the values, pale: as logged")
    if _has_best(first):
        parts.append("ring: best value")
    if total > shown:
        parts.append(f"{shown} of {total} lines are drawn")
    return "; ".join(parts) + "."


def _labels(lines: Sequence[Series]) -> list[str]:
    """Name lines as logged; where that is long, leave out the metric, which the caption names."""
    names = [line.name for line in lines]
    if max(map(len, names)) > LABEL_WIDTH:
        parts = [split_stage(name) for name in names]
        names = [f"{stage} {metric.partition('/')[2] or metric}".strip() for stage, metric in parts]
    return [shorten(name, LABEL_WIDTH, head=LABEL_WIDTH // 2) for name in names]


def _draw_line(axes: Any, series: Series, name: str, colour: str) -> bool:
    """Draw one series; say whether it was smoothed."""
    label = "\u200b" + name  # matplotlib drops labels that begin with an underscore
    steps, values = thin(series)
    if len(series.values) < _SMOOTH_FROM or split_stage(series.name)[0] != "train":
        axes.plot(
            steps,
            values,
            color=colour,
            linewidth=1.5,
            label=label,
            marker="o",
            markersize=2.8 if len(steps) < 30 else 0,
        )
        return False
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
    axes.plot(series.steps, running_mean(series.values), color=colour, linewidth=1.6, label=label)
    return True


def _has_best(series: Series) -> bool:
    return (
        split_stage(series.name)[0] == "val"
        and higher_is_better(series.name) is not None
        and int(np.isfinite(series.values).sum()) > 1
    )


def _mark_best(axes: Any, series: Series) -> None:
    if _has_best(series):
        step, value = best_point(series)
        axes.plot([step], [value], marker="o", markersize=8, markerfacecolor="none", markeredgecolor=INK, linestyle="")
        side = -1 if step > (series.steps[0] + series.steps[-1]) / 2 else 1  # the side with room
        place = {"xytext": (8 * side, 0), "textcoords": "offset points", "va": "center", "bbox": _PAPER}
        axes.annotate(number(value), (step, value), ha="right" if side < 0 else "left", color=SOFT, **place)


def _spans_decades(lines: Sequence[Series]) -> bool:
    values = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > 30)


def _dash(place: int) -> Any:
    return ("-", (0, (5, 2)), (0, (1, 1.5)))[place // len(COLOURS) % 3]
