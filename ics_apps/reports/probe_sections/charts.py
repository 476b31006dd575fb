"""Charts of what probes measured: one pair of axes under a title, with its legend; what is painted is the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.axes import focus, log_axis, step_axis
from ics_apps.reports.heatmaps import FEW_STEPS
from ics_apps.reports.svg import COLOURS, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import number, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPREAD: Final = (15.0, 50.0, 85.0)  # percentiles over layers, as of the monitor's bands

_DECADE: Final = 30.0  # values above 0 that span more are drawn on a log axis
_NEAR: Final = 4  # measurements up to which each is marked


@dataclass(frozen=True)
class Chart:
    """What a chart of the page says about itself.

    Attributes:
        name: Prefix of ids, unique on the page.
        title: What is drawn, a few words.
        y_label: Quantity and unit of the value axis.
        x_label: The same of the other axis; "step" for an axis of steps.
        wide: Whether it takes the page's whole width.
    """

    name: str
    title: str
    y_label: str
    x_label: str = "step"
    wide: bool = False


def draw_chart(
    what: Chart, paint: Callable[[Any], None], caption: str, steps: NDArray[np.int64] | None = None
) -> Drawing:
    """Draw a chart.

    Args:
        what: Its words.
        paint: Draws on the axes; what it labels is named in the legend.
        caption: What is drawn.
        steps: Steps that were measured, of a chart over steps: each of few has its own tick.

    Returns:
        The drawing.
    """
    from matplotlib.figure import Figure

    width, height = (10.4, 3.1) if what.wide else (5.1, 2.8)
    with figure_style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.74 / width, 0.46 / height, 1 - 0.92 / width, 1 - 1.04 / height))
        axes.margins(x=0.02)
        paint(axes)
        if what.x_label == "step":
            step_axis(axes)
        else:
            axes.set_xlabel(what.x_label)
        if steps is not None and len(steps) <= FEW_STEPS:
            axes.set_xticks(steps)
        axes.set_ylabel(what.y_label)
        axes.grid(axis="y")
        figure.text(0.04 / width, 1 - 0.15 / height, what.title, fontsize=9, fontweight="bold", va="center")
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            axes.legend(
                handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles), borderaxespad=0.1,
                columnspacing=1.2, handlelength=1.6, handletextpad=0.5,
            )  # fmt: skip
        svg = inline_svg(figure, what.name, f"{what.title}: chart of {what.y_label} by {what.x_label}.")
    return Drawing(svg, caption, wide=what.wide)


def line(
    axes: Any, x: NDArray[Any], y: NDArray[np.float64], label: str, colour: str = COLOURS[0], **style: Any
) -> None:
    """Draw a line; few points are marked, so that a single one can be seen."""
    marker = "o" if len(x) <= _NEAR else ""
    axes.plot(
        x, finite(y), **{"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 4, **style}, label=label
    )


def band(
    axes: Any,
    x: NDArray[Any],
    ends: tuple[NDArray[np.float64], NDArray[np.float64]],
    label: str,
    colour: str = COLOURS[0],
) -> None:
    """Draw a band; of a single measurement, a bar."""
    low, high = map(finite, ends)
    if len(x) == 1:
        axes.vlines(x, low, high, color=colour, alpha=0.3, linewidth=8, label=label)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0, label=label)


def value_axis(axes: Any, values: Sequence[NDArray[np.float64]], *, log: bool | None = None) -> None:
    """Fit the value axis to what is drawn.

    Args:
        axes: The axes.
        values: What is drawn.
        log: Whether it is logarithmic, which takes values above 0; None for where they span more than a decade or so.
    """
    drawn = np.concatenate([np.ravel(value) for value in values])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return
    low, high = float(drawn.min()), float(drawn.max())
    positive = drawn[drawn > 0]
    if log is None:
        log = low > 0 and high / low > _DECADE
    if log and len(positive):
        low = float(positive.min())
        room = max((high / low) ** 0.06, 1.5)  # two round ticks always lie in between
        axes.set_ylim(low / room, high * room)
        log_axis(axes)
        return
    focus(low, high, axes)
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))


def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 15th, 50th and 85th percentile over layers, float64 (3, T); NaN at steps where none was measured."""
    out = np.full((3, values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        measured = values[:, column][np.isfinite(values[:, column])]
        if len(measured):
            out[:, column] = np.percentile(measured, SPREAD)
    return out


def course(steps: NDArray[np.int64], values: NDArray[np.float64]) -> str:
    """Spell the first and the last value of a line.

    Example:
        >>> course(np.array([0, 900]), np.array([0.5, 0.25])), course(np.array([3]), np.array([2.0]))
        ('0.500 at step 0 and 0.250 at step 900', '2.00 at step 3')
    """
    ends = dict.fromkeys((0, len(steps) - 1))
    return " and ".join(f"{number(float(values[end]))} at step {steps[end]}" for end in ends)


def finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values with NaN, which is not drawn, for infinities."""
    return np.where(np.isfinite(values), values, np.nan)
