"""The alarms of a run in time: one line a rule, one mark where it fired."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from ics_apps.reports.axes import step_axis
from ics_apps.reports.svg import COLOURS, INK, SOFT, Drawing, figure_style, inline_svg
from ics_apps.reports.wording import count, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ics_apps.reports.alarm_files import Alarm

MAX_MARKS: Final = 150  # on one line; neighbours beyond it become one mark

_WIDTH: Final = 10.4
_ROW: Final = 0.27
_FOOT: Final = 0.45


def alarm_strip(alarms: Sequence[Alarm], ends: tuple[int, int]) -> Drawing | None:
    """Draw when each rule fired.

    Args:
        alarms: Alarms by step.
        ends: First and last step of the run.

    Returns:
        The drawing, rules from top to bottom in the order in which they first fired; None where none did.
    """
    if not alarms:
        return None
    from matplotlib.figure import Figure

    rules = list(dict.fromkeys(alarm.rule for alarm in alarms))
    low, high = min(ends[0], alarms[0].step), max(ends[1], alarms[-1].step)
    width = max(1, (high - low) // MAX_MARKS)
    height = _FOOT + 0.08 + _ROW * len(rules)
    left, right = 0.34 + 0.062 * max(len(shorten(rule)) for rule in rules), 1.45
    with figure_style():
        figure = Figure(figsize=(_WIDTH, height))
        box = (left / _WIDTH, _FOOT / height, 1 - (left + right) / _WIDTH, _ROW * len(rules) / height)
        axes = figure.add_axes(box)
        for row, rule in enumerate(rules):
            own = [alarm for alarm in alarms if alarm.rule == rule]
            marks = Counter(low + (alarm.step - low) // width * width for alarm in own)
            sizes = 22 * np.sqrt(np.minimum([*marks.values()], 25))
            colour = COLOURS[1] if rule == "nonfinite" else COLOURS[0]
            axes.axhline(row, color="#e6eaee", linewidth=0.8, zorder=0)
            axes.scatter([*marks], [row] * len(marks), s=sizes, color=colour, alpha=0.75, linewidths=0, clip_on=False)
            layers = len({alarm.layer for alarm in own})
            text = f"{len(own)} in {count(layers, 'layer')}"
            axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", color=SOFT)
        axes.set_yticks(range(len(rules)), [shorten(rule) for rule in rules], color=INK)
        axes.set_ylim(len(rules) - 0.5, -0.5)
        axes.set_xlim(low, max(high, low + 1))
        axes.tick_params(axis="y", length=0, pad=9)
        axes.spines["left"].set_visible(False)
        step_axis(axes)
        svg = inline_svg(figure, "alarms", f"Strip chart of {count(len(alarms), 'alarm')} by rule and step.")
    return Drawing(svg, "One mark where a rule fired; the larger it is, the more layers it fired for (up to 25).")
