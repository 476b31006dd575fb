"""The head of the page: headline metrics, the facts of the run, and what its reader must be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ics_apps.reports.reading import seconds_of
from ics_apps.reports.wording import duration, number, split_stage
from ics_apps.runs import layout

if TYPE_CHECKING:
    from ics_apps.reports.run_files import RunFiles

MAX_TILES: Final = 6


def tiles(run: RunFiles) -> tuple[tuple[tuple[str, str], ...], str]:
    """Headline metrics: of metrics.json, or else the last validation values; totals before classes; then alarms."""

    def rank(name: str) -> tuple[int, bool, int]:
        stage, metric = split_stage(name)
        return ({"test": 0, "val": 1}.get(stage, 2), "loss" in metric, metric.count("/"))

    values, note = run.summary, ""
    if not values:
        values = {name: float(series.values[-1]) for name, series in run.curves.items() if name.startswith("val/")}
        note = f"{layout.METRICS_SUMMARY} is missing, because the run has not been tested: "
        note += "these are the last values of metrics.csv." if values else "there is no headline yet."
    names = sorted(values, key=rank)
    alarms = () if run.alarms is None else (("alarms", str(len(run.alarms))),)
    room = MAX_TILES - len(alarms)
    if len(names) > room:
        note = f"{note} {room} of {len(names)} values; all are in the table under the curves.".strip()
    return (*((name, number(values[name])) for name in names[:room]), *alarms), note


def facts(run: RunFiles) -> tuple[tuple[str, str], ...]:
    """List duration, start, machine, precision and seed, as far as run.json holds them."""
    record = run.record
    seconds = seconds_of(run)
    machine = record.get("machine")
    found = [
        ("duration", duration(seconds) if seconds is not None else ""),
        ("started", clock(record.get("started"))),
        ("machine", _machine(machine) if isinstance(machine, dict) else ""),
        ("precision", plain(record.get("precision"))),
        ("seed", plain(record.get("seed"))),
    ]
    return tuple((name, value) for name, value in found if value)


def _machine(machine: dict[str, Any]) -> str:
    cpus = machine.get("cpus")
    known = [
        f"{cpus} CPU cores" if cpus is not None else "",
        plain(machine.get("device")),
        plain(machine.get("platform")),
    ]
    others = [f"{name} {value}" for name, value in machine.items() if name not in ("cpus", "device", "platform")]
    return ", ".join(part for part in [*known, *others] if part)


def notes(run: RunFiles) -> tuple[str, ...]:
    """List the notes of the run, its resumptions, and the files that could be read only in part."""
    written = run.record.get("notes")
    resumed = run.record.get("resumed")
    lines = [str(note) for note in written] if isinstance(written, list) else []
    for entry in resumed if isinstance(resumed, list) else ():
        if isinstance(entry, dict):
            lines.append(
                f"Resumed from epoch {entry.get('from_epoch', '?')} at {clock(entry.get('at')) or 'an unknown time'}."
            )
    return (*lines, *run.problems)


def clock(value: object) -> str:
    """Spell an ISO time without fractions of a second."""
    return plain(value).split(".")[0].replace("T", " ")


def plain(value: object) -> str:
    """Spell any value of run.json; nothing for null."""
    return "" if value is None else str(value)
