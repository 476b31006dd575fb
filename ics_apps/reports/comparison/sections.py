"""Puts the parts of a comparison in the order in which people look: metrics, settings, curves, layers, alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ics_apps.reports.comparison import words
from ics_apps.reports.comparison.headline import headline_metrics, metric_tables
from ics_apps.reports.comparison.labels import run_labels
from ics_apps.reports.comparison.maps import common_labels, side_by_side
from ics_apps.reports.comparison.overlays import median_over_layers, metric_overlays, run_lines
from ics_apps.reports.comparison.settings import differing, flat_settings, settings_tables
from ics_apps.reports.layer_sections import DRIFT, REFERENCE, SATURATED
from ics_apps.reports.layers import layer_grid
from ics_apps.reports.parts import Page, Section, Table, as_figures
from ics_apps.reports.reading import seconds_of
from ics_apps.reports.verdict import plain
from ics_apps.reports.wording import count, duration
from ics_apps.runs import layout

if TYPE_CHECKING:
    from ics_apps.reports.heatmaps import Map
    from ics_apps.reports.layers import Grid
    from ics_apps.reports.run_files import RunFiles
    from ics_apps.reports.svg import Drawing

NAMED_LAYERS: Final = 6

_NONE: Final = "\N{EN DASH}"
_NO_METRICS: Final = "No run holds a metric yet: ics-apps run and ics-apps fit write metrics.csv while a run trains."
_ARROWS: Final = "Arrows: which way is better; the best run of each line is marked."
_NO_LAYERS: Final = (
    "Fewer than two of these runs were watched: add ics_apps.callbacks.ActivationMonitor to the trainer's callbacks."
)


def build_comparison(runs: Sequence[RunFiles]) -> Page:
    """Put together the page that compares runs.

    Args:
        runs: Two or more runs.

    Raises:
        ReportError: A run is given twice.
    """
    labels = run_labels([run.path for run in runs])
    changed = differing([flat_settings(run.config or "") for run in runs])
    metrics = headline_metrics(runs)
    layers, layer_words = _layers(runs, labels)
    reading = [*words.metric_words(metrics, labels), words.settings_words(changed)]
    problems = [f"{label}: {line}" for run, label in zip(runs, labels, strict=True) for line in run.problems]
    return Page(
        title=f"Comparison of {len(runs)} runs",
        recipe=" \N{MIDDLE DOT} ".join(labels),
        status="",
        tiles=(),
        tiles_note="",
        facts=(),
        notes=tuple(problems),
        reading=(" ".join(reading), " ".join([*layer_words, words.alarm_words(runs, labels)])),
        sections=(
            Section(
                "metrics",
                "Metrics",
                tables=metric_tables(metrics, labels),
                note=_ARROWS if metrics else "",
                missing="" if metrics else _NO_METRICS,
            ),
            _settings(runs, changed, labels),
            _curves(runs, labels),
            *layers,
            _alarms(runs, labels),
            _runs(runs, labels),
        ),
        source="the runs",
    )


def _settings(runs: Sequence[RunFiles], changed: dict[str, tuple[str, ...]], labels: Sequence[str]) -> Section:
    absent = [label for run, label in zip(runs, labels, strict=True) if not run.config]
    missing = "" if changed else f"The {len(runs)} configurations are the same."
    if absent:
        missing = f"{layout.CONFIG} is missing in {words.join(absent)}, so each of its settings counts as differing."
    return Section("settings", "Settings that differ", tables=settings_tables(changed, labels), missing=missing)


def _curves(runs: Sequence[RunFiles], labels: Sequence[str]) -> Section:
    drawings, others = metric_overlays(runs, labels)
    note = f"Not drawn: {', '.join(others)}." if others else ""
    return Section(
        "curves", "Curves", figures=as_figures(*drawings), note=note, missing="" if drawings else _NO_METRICS
    )


def _layers(runs: Sequence[RunFiles], labels: Sequence[str]) -> tuple[tuple[Section, ...], list[str]]:
    watched = [(run, label) for run, label in zip(runs, labels, strict=True) if run.monitor is not None]
    if len(watched) < 2:
        return (Section("drift", "Drift", missing=_NO_LAYERS),), []
    whole = [layer_grid(run.monitor.assign(sampled=1.0), "sampled") for run, _ in watched]
    common = common_labels([grid for grid in whole if grid is not None])
    which = f"{len(common)} common layers" if common else "all layers of each run"
    medians = {
        column: [None if run.monitor is None else median_over_layers(run, column, common) for run in runs]
        for column in (DRIFT.column, REFERENCE.column)
    }
    captions = {
        DRIFT.column: f"Median over {which} of the drift between two samples (Wasserstein-1 / std, log axis).",
        REFERENCE.column: f"Median over {which} of the distance from the first sample (Wasserstein-1 / std, log axis).",
    }
    lines = [
        run_lines(series, labels, f"median-{column}", captions[column], log=True)
        for column, series in medians.items()
        if any(one is not None for one in series)
    ]
    note = _note(watched, [grid for grid in whole if grid is not None], common)
    drawings: list[Drawing] = list(lines)
    for what in (REFERENCE, DRIFT):
        fold = "Drift between two samples, layer by layer" if what is DRIFT else ""
        drawings += [replace(drawing, fold=fold) for drawing in _maps(watched, what)]
    saturated = _maps(watched, SATURATED)
    named = [(layer_grid(run.monitor, REFERENCE.column), label) for run, label in watched]
    grids = [grid for grid, _ in named if grid is not None]
    shared = common_labels(grids)
    said = [
        *words.drift_words(medians[REFERENCE.column], labels),
        *words.layer_words(grids, [label for grid, label in named if grid is not None], shared),
    ]
    nothing = "" if drawings else "No drift above 0 was measured in these runs: it takes two samples of a layer."
    sections = [Section("drift", "Drift", figures=as_figures(*drawings), note=note, missing=nothing)]
    if saturated:
        sections.append(Section("units", "Saturation", figures=as_figures(*saturated)))
    return tuple(sections), said


def _maps(watched: Sequence[tuple[RunFiles, str]], what: Map) -> list[Drawing]:
    measured = [(layer_grid(run.monitor, what.column), label) for run, label in watched]
    pairs = [(grid, label) for grid, label in measured if grid is not None]
    if len(pairs) < 2:
        return []
    absent = [label for grid, label in measured if grid is None]
    if absent:
        what = replace(what, caption=f"{what.caption} Not measured in {words.join(absent)}.")
    return side_by_side([grid for grid, _ in pairs], [label for _, label in pairs], what)


def _note(watched: Sequence[tuple[RunFiles, str]], grids: Sequence[Grid], common: Sequence[str]) -> str:
    """Say which layers the runs have in common, and name those that they have not."""
    parts = [f"{count(len(common), 'layer')} {'is' if len(common) == 1 else 'are'} common to these runs."]
    for (_, label), grid in zip(watched, grids, strict=True):
        own = [name for name in grid.labels if name not in common]
        if own:
            more = f" and {len(own) - NAMED_LAYERS} more" if len(own) > NAMED_LAYERS else ""
            parts.append(f"Not common, of {label}: {', '.join(own[:NAMED_LAYERS])}{more}.")
    return " ".join(parts)


def _alarms(runs: Sequence[RunFiles], labels: Sequence[str]) -> Section:
    fired = [alarm for run in runs for alarm in run.alarms or ()]
    if not fired:
        return Section("alarms", "Alarms", missing=words.alarm_words(runs, labels))
    rules = sorted({alarm.rule for alarm in fired}, key=lambda rule: min(a.step for a in fired if a.rule == rule))
    rows = tuple((rule, *(_fired(run, rule) for run in runs)) for rule in rules)
    return Section("alarms", "Alarms", tables=(Table(("rule", *labels), rows),))


def _fired(run: RunFiles, rule: str) -> str:
    if run.alarms is None:
        return "not watched"
    own = [alarm for alarm in run.alarms if alarm.rule == rule]
    if not own:
        return _NONE
    return f"{len(own)}, {'from' if len(own) > 1 else 'at'} step {own[0].step}"


def _runs(runs: Sequence[RunFiles], labels: Sequence[str]) -> Section:
    header = ("run", "status", "recipe", "last step", "duration", "seed", "precision")
    rows = []
    for run, label in zip(runs, labels, strict=True):
        seconds = seconds_of(run)
        cells = (
            plain(run.record.get("status")),
            plain(run.record.get("recipe")),
            plain(run.last_step),
            "" if seconds is None else duration(seconds),
            plain(run.record.get("seed")),
            plain(run.record.get("precision")),
        )
        rows.append((label, *(cell or _NONE for cell in cells)))
    return Section("runs", "Runs", tables=(Table(header, tuple(rows)),))
