"""The paragraph at the top of the page: what the numbers of a run say, in plain words.

Each function returns sentences made of numbers that stand in the run's files; nothing is judged that is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ics_apps.reports.layer_reading import describe_alarms, describe_layers
from ics_apps.reports.wording import duration, higher_is_better, number, split_stage

if TYPE_CHECKING:
    from ics_apps.reports.metric_files import Series
    from ics_apps.reports.run_files import RunFiles


def describe_run(run: RunFiles) -> list[list[str]]:
    """Say what happened: progress, the main metric, bad losses; what the layers did; the alarms.

    Args:
        run: Files of a run, as far as they exist.

    Returns:
        Paragraphs of sentences, in the order in which people ask.
    """
    paragraphs = [[*_progress(run), *_metric(run), *_worst_case(run), *_bad_losses(run)]]
    if run.monitor is not None:
        paragraphs.append(describe_layers(run.monitor))
    paragraphs.append(describe_alarms(run.alarms))
    return [paragraph for paragraph in paragraphs if paragraph]


def main_metric(run: RunFiles) -> Series | None:
    """Find the validation series that a reader asks for first: the shortest known name, a loss only if nothing else."""
    known = [
        series
        for name, series in run.curves.items()
        if split_stage(name)[0] == "val" and higher_is_better(name) is not None and np.isfinite(series.values).any()
    ]
    return min(known, key=lambda series: ("loss" in series.name, series.name.count("/")), default=None)


def best_point(series: Series) -> tuple[int, float]:
    """Find the best step and value of a series whose direction is known by its name."""
    sign = 1.0 if higher_is_better(series.name) else -1.0
    position = int(np.argmax(np.where(np.isfinite(series.values), sign * series.values, -np.inf)))
    return int(series.steps[position]), float(series.values[position])


def seconds_of(run: RunFiles) -> float | None:
    """Seconds that the run took, where it wrote them."""
    seconds = run.record.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else None


def _progress(run: RunFiles) -> list[str]:
    verbs = {"finished": "finished", "interrupted": "was interrupted", "failed": "failed"}
    status = str(run.record.get("status", ""))
    if run.last_step is None:
        reached = "before a metric was logged" if status in verbs else ""
    else:
        reached = f"at step {run.last_step}"
        reached += f" (epoch {run.last_epoch}, counted from 0)" if run.last_epoch is not None else ""
    seconds = seconds_of(run)
    took = f" after {duration(seconds)}" if seconds is not None else ""
    if status in verbs:
        return [f"The run {verbs[status]} {reached}{took}."]
    if status == "running":
        last = f"; its last metrics are from {reached.removeprefix('at ')}" if reached else ""
        return [f"The run is marked as running, and so is one that was killed{last}."]
    return [f"The run wrote its last metrics {reached}."] if reached else []


def _metric(run: RunFiles) -> list[str]:
    series = main_metric(run)
    if series is None:
        return []
    values = series.values[np.isfinite(series.values)]
    step, best = best_point(series)
    if len(values) == 1:
        sentence = f"{series.name} is {number(best)} at step {step}, its only value"
    else:
        first, last = float(values[0]), float(values[-1])
        verb = "stayed at" if first == last else "rose" if last > first else "fell"
        moved = number(first) if first == last else f"from {number(first)} to {number(last)}"
        sentence = (
            f"{series.name} {verb} {moved} over {len(values)} values; its best, {number(best)}, is at step {step}"
        )
    test = run.summary.get(f"test/{split_stage(series.name)[1]}")
    return [f"{sentence}; on the test set it is {number(test)}." if test is not None else f"{sentence}."]


def _bad_losses(run: RunFiles) -> list[str]:
    sentences = []
    for name, series in run.curves.items():
        bad = ~np.isfinite(series.values)
        if "loss" in name and bad.any():
            step = int(series.steps[bad][0])
            sentences.append(f"{name} was not finite in {int(bad.sum())} of {len(bad)} values, first at step {step}.")
    return sentences


def _worst_case(run: RunFiles) -> list[str]:
    scored = [case for case in run.panels if case.scores]
    if len(scored) < 2:
        return []
    name, value = next(iter(scored[0].scores.items()))
    return [f"The worst of {len(scored)} pictured cases is {scored[0].case} ({name} {number(value)})."]
