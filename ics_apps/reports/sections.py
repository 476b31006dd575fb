"""Puts the parts of the page in the order in which people look: verdict, words, curves, layers, probes, cases, origin.

A part whose files are missing says in one sentence what is missing and how to get it.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from ics_apps.reports.alarm_section import alarm_section
from ics_apps.reports.curves import metric_charts
from ics_apps.reports.layer_sections import layer_sections
from ics_apps.reports.masking import mask_command, mask_yaml
from ics_apps.reports.panels import PanelCase, embed
from ics_apps.reports.parts import Case, Page, Section, Table, as_figures
from ics_apps.reports.probe_sections import probe_sections
from ics_apps.reports.reading import describe_run
from ics_apps.reports.verdict import clock, facts, notes, plain, tiles
from ics_apps.reports.wording import number
from ics_apps.runs import layout

if TYPE_CHECKING:
    from ics_apps.reports.run_files import RunFiles

MAX_CASES: Final = 12
MAX_PICTURES_BYTES: Final = 3 * 2**20  # of base64 text, so that the page stays one that can be sent by mail


def build_page(run: RunFiles) -> Page:
    """Put together the page of a run."""
    headline, note = tiles(run)
    status = str(run.record.get("status") or "unknown")
    return Page(
        title=run.name,
        recipe=str(run.record.get("recipe") or ""),
        status=status,
        tiles=headline,
        tiles_note=note,
        facts=facts(run),
        notes=notes(run),
        reading=tuple(" ".join(paragraph) for paragraph in describe_run(run)),
        sections=(
            _curves(run),
            alarm_section(run),
            *layer_sections(run),
            *probe_sections(run),
            _cases(run),
            _config(run),
            _origin(run),
        ),
    )


def _curves(run: RunFiles) -> Section:
    table = Table(
        ("metric", "value"),
        tuple((name, number(value)) for name, value in run.summary.items()),
        fold=f"All {len(run.summary)} values of {layout.METRICS_SUMMARY}",
    )
    tables = (table,) if run.summary else ()
    figures = as_figures(*metric_charts(run.curves))
    missing = ""
    if not figures:
        missing = (
            f"{layout.METRICS_TABLE} holds no metrics yet: ics-apps run and ics-apps fit write it while a run "
            "trains; start the run again in this directory."
        )
    return Section("curves", "Curves", figures=figures, tables=tables, missing=missing)


def _cases(run: RunFiles) -> Section:
    cases: list[Case] = []
    size = 0
    for case in run.panels[:MAX_CASES]:
        pictures = tuple(embed(picture) for picture in case.pictures)
        size += sum(len(picture.data) for picture in pictures)
        if cases and size > MAX_PICTURES_BYTES:
            break
        cases.append(Case(_case_line(case), pictures))
    if not cases:
        missing = (
            "panels/index.json holds no cases: they are written when a run tests its best checkpoint (ics-apps run)."
        )
        return Section("cases", "Cases", missing=missing)
    note = f"Worst first; {len(cases)} of {len(run.panels)} cases." if len(run.panels) > 1 else ""
    return Section("cases", "Cases", cases=tuple(cases), note=note)


def _case_line(case: PanelCase) -> str:
    scores = (f"{name} {number(value)}" for name, value in case.scores.items())
    return " · ".join(part for part in (case.case, case.stage, *scores) if part)


def _config(run: RunFiles) -> Section:
    if run.config is None:
        return Section(
            "config", "Configuration", missing=f"{layout.CONFIG} is missing: it is written when a run starts."
        )
    return Section(
        "config",
        "Configuration",
        text=mask_yaml(run.config),
        text_fold=f"{layout.CONFIG}, merged and with secrets hidden",
    )


def _origin(run: RunFiles) -> Section:
    record = run.record
    rows: list[tuple[str, str]] = []
    command = record.get("command")
    if isinstance(command, list):
        rows.append(("command", shlex.join(mask_command([str(part) for part in command]))))
    rows += [(name, clock(record.get(name))) for name in ("started", "finished") if record.get(name)]
    git = record.get("git")
    if isinstance(git, dict):
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        rows.append(("git commit", f"{git.get('commit') or 'unknown'}{dirty}"))
    machine = record.get("machine")
    if isinstance(machine, dict):
        rows += [(f"machine: {name}", plain(value)) for name, value in machine.items()]
    versions = record.get("versions")
    if isinstance(versions, dict):
        rows += [(f"version of {name}", plain(value)) for name, value in versions.items()]
    rows.append(("run directory", run.name))
    missing = "" if record else f"{layout.RECORD} is missing: it is written when a run starts."
    return Section("origin", "Versions and machine", tables=(Table(("", ""), tuple(rows)),), missing=missing)
