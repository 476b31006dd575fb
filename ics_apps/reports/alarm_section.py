"""The section about alarms: when they fired, for which layer, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ics_apps.reports.alarm_strip import alarm_strip
from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.wording import printable
from ics_apps.runs import layout

if TYPE_CHECKING:
    from ics_apps.reports.alarm_files import Alarm
    from ics_apps.reports.run_files import RunFiles

TABLE_ROWS: Final = 8
MOST_ROWS: Final = 500

_HEADER: Final = ("step", "rule", "layer", "what happened", "what to do")
_NOT_WATCHED: Final = (
    f"Nothing was watched for alarms: {layout.MONITOR}/{layout.ALARMS} is missing. "
    "ics_apps.callbacks.ActivationMonitor writes it while a run trains; an older run has none."
)
_CHOSEN: Final = "The first alarm of each rule, and the earliest of the others."
_NONE: Final = "The monitor watched this run, and no alarm fired."


def alarm_section(run: RunFiles) -> Section:
    """Build the section about the alarms of a run."""
    if run.alarms is None:
        return Section("alarms", "Alarms", missing=_NOT_WATCHED)
    if not run.alarms:
        return Section("alarms", "Alarms", missing=_NONE)
    sampled = [] if run.monitor is None else run.monitor["step"].tolist()
    last = max([run.last_step or 0, *sampled[-1:]])
    figures = as_figures(alarm_strip(run.alarms, (min([0, *sampled[:1]]), last)))
    first = _first_of_each_rule(run.alarms)
    more = len(first) < len(run.alarms)
    tables = [Table(_HEADER, tuple(map(_row, first)), caption=_CHOSEN if more else "")]
    if more:
        shown = run.alarms[:MOST_ROWS]
        name = f"All {len(run.alarms)} alarms" if len(shown) == len(run.alarms) else f"The first {len(shown)} alarms"
        tables.append(Table(_HEADER, tuple(map(_row, shown)), fold=f"{name}, by step"))
    return Section("alarms", "Alarms", figures=figures, tables=tuple(tables))


def _first_of_each_rule(alarms: tuple[Alarm, ...]) -> list[Alarm]:
    """Choose the first alarm of each rule, then the earliest others while there is room; by step."""
    first = list({alarm.rule: alarm for alarm in reversed(alarms)}.values())
    others = [alarm for alarm in alarms if alarm not in first]
    chosen = [*first, *others[: max(0, TABLE_ROWS - len(first))]]
    return sorted(chosen, key=alarms.index)


def _row(alarm: Alarm) -> tuple[str, ...]:
    parts = (str(alarm.step), alarm.rule, alarm.layer, alarm.sentence, alarm.remedy)
    return tuple(printable(part) for part in parts)
