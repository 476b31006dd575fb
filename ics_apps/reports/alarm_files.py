"""Reads the alarms that the monitor wrote, even while it writes them; what they say is in `alarm_section`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ics_apps.reports.metric_files import read_rows, to_float, to_integer

_FULL: Final = "file_full"  # the rule of a last line that says that no more were written


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Attributes:
        step: Optimizer steps done when it fired.
        rule: Name of the rule.
        layer: Label of the layer, as on the heat maps.
        value: What was measured, NaN where it was not written.
        threshold: What it was held against, NaN where it was not written.
        sentence: What happened.
        remedy: What to do.
    """

    step: int
    rule: str
    layer: str
    value: float = float("nan")
    threshold: float = float("nan")
    sentence: str = ""
    remedy: str = ""


def read_alarms(path: Path, problems: list[str]) -> tuple[Alarm, ...] | None:
    """Read the alarms of a run; one that was written twice (a resumed run) counts once, as it was written last.

    Args:
        path: The file; it may be missing.
        problems: Sentences about what could not be read are appended here.

    Returns:
        Alarms by step, values that are not finite first within one; None where the file is missing: nobody watched.
    """
    if not path.is_file():
        return None
    header, rows = read_rows(path, problems)
    alarms: dict[tuple[int, str, str], Alarm] = {}
    unreadable = 0
    for row in rows:
        cells = dict(zip(header, row, strict=False))
        step, rule = to_integer(cells.get("step", "")), cells.get("rule", "")
        if step is None or not rule or len(row) != len(header):
            unreadable += 1
            continue
        if rule == _FULL:
            problems.append(f"{path.name}: {cells.get('sentence', '')}")
            continue
        alarms[step, rule, cells.get("layer", "")] = Alarm(
            step, rule, cells.get("layer", ""), _number(cells, "value"), _number(cells, "threshold"),
            cells.get("sentence", ""), cells.get("remedy", ""),
        )  # fmt: skip
    if unreadable:
        problems.append(f"{unreadable} lines of {path.name} could not be read and are left out.")
    return tuple(sorted(alarms.values(), key=lambda alarm: (alarm.step, alarm.rule != "nonfinite")))


def _number(cells: dict[str, str], name: str) -> float:
    value = to_float(cells.get(name, ""))
    return float("nan") if value is None else value
