"""The metrics of several runs beside each other, the best of each marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ics_apps.reports.parts import Table
from ics_apps.reports.reading import best_point
from ics_apps.reports.wording import higher_is_better, number, printable, split_stage

if TYPE_CHECKING:
    from ics_apps.reports.run_files import RunFiles

SHOWN: Final = 12
ABSENT: Final = "\N{EN DASH}"

Metrics = Mapping[str, Sequence[float]]


def headline_metrics(runs: Sequence[RunFiles]) -> dict[str, tuple[float, ...]]:
    """Collect the test's values and, of each validation metric whose better way is known, the best value.

    Args:
        runs: Runs.

    Returns:
        One value a run, NaN where a run has none, by name; the test's first, totals before classes.
    """
    found: list[dict[str, float]] = []
    for run in runs:
        best = {
            f"best {name}": best_point(series)[1]
            for name, series in run.curves.items()
            if split_stage(name)[0] == "val" and higher_is_better(name) is not None and np.isfinite(series.values).any()
        }
        found.append({**run.summary, **best})
    names = sorted(dict.fromkeys(name for one in found for name in one), key=_rank)
    return {name: tuple(one.get(name, float("nan")) for one in found) for name in names}


def best_run(name: str, values: Sequence[float]) -> int | None:
    """Say which run is best; None where fewer than two have a value, or where the better way is not known."""
    higher = higher_is_better(name.removeprefix("best "))
    if higher is None or int(np.isfinite(values).sum()) < 2:
        return None
    signed = np.array(values) if higher else -np.array(values)
    return int(np.argmax(np.where(np.isfinite(signed), signed, -np.inf)))


def metric_tables(metrics: Metrics, labels: Sequence[str]) -> tuple[Table, ...]:
    """Make a table of metrics by runs; those beyond the first are folded."""
    names = list(metrics)
    parts = [(names[:SHOWN], ""), (names[SHOWN:], f"{len(names) - SHOWN} more metrics")]
    return tuple(_table(metrics, part, labels, fold) for part, fold in parts if part)


def _table(metrics: Metrics, names: Sequence[str], labels: Sequence[str], fold: str) -> Table:
    rows, best = [], set()
    for place, name in enumerate(names):
        values = metrics[name]
        first = best_run(name, values)
        arrow = {True: " \N{UPWARDS ARROW}", False: " \N{DOWNWARDS ARROW}", None: ""}
        cells = [ABSENT if np.isnan(value) else number(value) for value in values]
        if first is not None and len(set(values)) > 1:
            best |= {(place, run + 1) for run, value in enumerate(values) if value == values[first]}
        rows.append((printable(name) + arrow[higher_is_better(name.removeprefix("best "))], *cells))
    return Table(("metric", *labels), tuple(rows), fold=fold, best=frozenset(best))


def _rank(name: str) -> tuple[bool, int, bool, int]:
    stage, metric = split_stage(name.removeprefix("best "))
    return name.startswith("best "), {"test": 0, "val": 1}.get(stage, 2), "loss" in metric, metric.count("/")
