"""Reads the files of one run directory, whatever state the run left them in; draws and says nothing.

Every part may be missing, cut off or damaged: what can be read is kept, and what cannot is named in `problems`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ics_apps.nearest import nearest_name
from ics_apps.reports.alarm_files import Alarm, read_alarms
from ics_apps.reports.metric_files import Series, read_curves, read_text
from ics_apps.reports.monitor_files import read_monitor
from ics_apps.reports.panels import PanelCase, read_panels
from ics_apps.reports.probe_files import read_probes
from ics_apps.runs import layout

_MARKS: Final = (
    layout.CONFIG,
    layout.RECORD,
    layout.METRICS_TABLE,
    layout.METRICS_SUMMARY,
    layout.MONITOR,
    layout.PROBES,
    layout.PANELS,
)


class ReportError(ValueError):
    """A report cannot be made; the message says of what and why."""


@dataclass(frozen=True)
class RunFiles:
    """What was found in a run directory.

    Attributes:
        path: The directory.
        record: run.json, {} where it is missing.
        config: Text of config.yaml as it stands, unmasked; None where it is missing.
        curves: Series of metrics.csv by name, in the order of its columns.
        last_step: Last step of metrics.csv, None where there is none.
        last_epoch: Last epoch of metrics.csv, None where there is none.
        summary: metrics.json, {} where it is missing.
        monitor: Rows of the monitor (a pandas DataFrame, see `read_monitor`), None where there are none.
        alarms: What the monitor raised, by step; None where it did not watch.
        probes: Tables of the probes by name (pandas DataFrames, see `read_probes`); None where nobody probed.
        panels: Cases with images, worst first.
        problems: Sentences about files that could be read only in part.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    curves: dict[str, Series] = field(default_factory=dict)
    last_step: int | None = None
    last_epoch: int | None = None
    summary: dict[str, float] = field(default_factory=dict)
    monitor: Any = None
    alarms: tuple[Alarm, ...] | None = None
    probes: dict[str, Any] | None = None
    panels: tuple[PanelCase, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run: that of its directory, with the recipe's folder before a mere number."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name


def read_run(run_dir: Path) -> RunFiles:
    """Read a run directory.

    Args:
        run_dir: Directory that `ics-apps run` or `ics-apps fit` wrote.

    Returns:
        What was found; a missing part is empty, a damaged one is also named in `problems`.

    Raises:
        ReportError: `run_dir` is not a directory, or holds no file of a run.
    """
    _check_run_directory(run_dir)
    problems: list[str] = []
    config = read_text(run_dir / layout.CONFIG, problems)
    curves, last_step, last_epoch = read_curves(run_dir / layout.METRICS_TABLE, problems)
    summary = _read_json(run_dir / layout.METRICS_SUMMARY, problems)
    return RunFiles(
        path=run_dir,
        record=_read_json(run_dir / layout.RECORD, problems),
        config=config,
        curves=curves,
        last_step=last_step,
        last_epoch=last_epoch,
        summary={str(name): float(value) for name, value in summary.items() if _is_number(value)},
        monitor=read_monitor(run_dir / layout.MONITOR, problems),
        alarms=read_alarms(run_dir / layout.MONITOR / layout.ALARMS, problems),
        probes=read_probes(run_dir / layout.PROBES, problems),
        panels=read_panels(run_dir / layout.PANELS, problems),
        problems=tuple(problems),
    )


def _check_run_directory(run_dir: Path) -> None:
    holds = f"a run directory holds at least one of {', '.join(_MARKS)}"
    if not run_dir.is_dir():
        names = [entry.name for entry in run_dir.parent.iterdir()] if run_dir.parent.is_dir() else []
        near = nearest_name(run_dir.name, names)
        hint = f"; did you mean {run_dir.parent / near}?" if near else ""
        state = "is a file" if run_dir.exists() else "does not exist"
        raise ReportError(f"{run_dir} {state}, but a report is made of a run directory ({holds}){hint}")
    if _is_run(run_dir):
        return
    inside = sorted(entry for entry in run_dir.iterdir() if entry.is_dir() and _is_run(entry))
    hint = f"; did you mean {inside[-1]}?" if inside else ""
    raise ReportError(f"{run_dir} is not a run directory: {holds}, and none is here{hint}")


def _is_run(path: Path) -> bool:
    return any((path / mark).exists() for mark in _MARKS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    text = read_text(path, problems)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is not valid JSON ({error}); it is left out.")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds a {type(content).__name__} where an object is expected; it is left out.")
        return {}
    return content
