"""The paragraph at the top of the page: what the numbers of a run say, in plain words.

Each function returns sentences made of numbers that stand in the run's files; nothing is judged that is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ics_apps.reports.layers import LayerSummary, stream_ratios, summarise_layers
from ics_apps.reports.wording import duration, higher_is_better, number, percent, split_stage

if TYPE_CHECKING:
    from ics_apps.reports.metric_files import Series
    from ics_apps.reports.run_files import RunFiles

SATURATED: Final = 0.05  # a share of saturated values worth a sentence
LAGGING: Final = 0.5  # standard deviations between batch and running means worth a sentence


def describe_run(run: RunFiles) -> list[list[str]]:
    """Say what happened: progress, the main metric, losses that were not finite; then what the layers did.

    Args:
        run: Files of a run, as far as they exist.

    Returns:
        Paragraphs of sentences, in the order in which people ask.
    """
    paragraphs = [[*_progress(run), *_metric(run), *_worst_case(run), *_bad_losses(run)]]
    if run.monitor is not None:
        layers = summarise_layers(run.monitor)
        paragraphs.append(
            [
                *_nonfinite_layers(layers),
                *_drift(layers),
                *_dead(layers),
                *_saturated(layers),
                *_lagging(layers),
                *_streams(stream_ratios(run.monitor)),
            ]
        )
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


def _nonfinite_layers(layers: Sequence[LayerSummary]) -> list[str]:
    bad = [layer for layer in layers if layer.nonfinite_step >= 0]
    if not bad:
        return []
    first = min(bad, key=lambda layer: layer.nonfinite_step)
    return [
        f"Values that are not finite appeared in {len(bad)} of {len(layers)} layers, "
        f"first in {first.label} at step {first.nonfinite_step}."
    ]


def _drift(layers: Sequence[LayerSummary]) -> list[str]:
    measured = [layer for layer in layers if np.isfinite(layer.drift_median)]
    if not measured:
        return []
    most = max(measured, key=lambda layer: layer.drift_median)
    return [
        f"The layer that drifted most, of {len(measured)}, is {most.label}: between two samples its output moved by "
        f"{number(most.drift_median)} standard deviations (median over the run), "
        f"at most by {number(most.drift_peak)} at step {most.drift_peak_step}."
    ]


def _dead(layers: Sequence[LayerSummary]) -> list[str]:
    counted = [layer for layer in layers if layer.dead >= 0]
    if not counted:
        return []
    dead, channels = sum(layer.dead for layer in counted), sum(layer.channels for layer in counted)
    if not dead:
        return [f"No dead channels among {channels} at the last sample."]
    worst = max(counted, key=lambda layer: layer.dead / max(layer.channels, 1))
    return [
        f"{dead} of {channels} channels were dead at the last sample, the largest share in {worst.label} "
        f"({worst.dead} of {worst.channels})."
    ]


def _saturated(layers: Sequence[LayerSummary]) -> list[str]:
    counted = [layer for layer in layers if np.isfinite(layer.saturated_last)]
    if not counted:
        return []
    worst = max(counted, key=lambda layer: layer.saturated_last)
    if worst.saturated_last < SATURATED:
        return [f"No layer had {percent(SATURATED)} or more of its values saturated at the last sample."]
    many = sum(layer.saturated_last >= SATURATED for layer in counted)
    return [
        f"{many} of {len(counted)} layers had {percent(SATURATED)} or more of their values saturated at the last "
        f"sample, most in {worst.label} ({percent(worst.saturated_last)})."
    ]


def _lagging(layers: Sequence[LayerSummary]) -> list[str]:
    counted = [layer for layer in layers if np.isfinite(layer.running_gap)]
    worst = max(counted, key=lambda layer: layer.running_gap, default=None)
    if worst is None or worst.running_gap < LAGGING:
        return []
    return [
        f"The running statistics of {worst.label} are {number(worst.running_gap)} standard deviations away from the "
        "batch's, so evaluation normalises differently than training did."
    ]


def _streams(ratios: Sequence[Series]) -> list[str]:
    if not ratios:
        return []
    low, high = min(float(s.values.min()) for s in ratios), max(float(s.values.max()) for s in ratios)
    furthest = max(ratios, key=lambda series: abs(float(np.log(series.values[-1]))))
    where = f"{len(ratios)} levels" if len(ratios) > 1 else "one level"
    return [
        f"RMS(skip)/RMS(up) lies between {number(low)} and {number(high)} over {where}; at the last sample it is "
        f"furthest from 1 at {furthest.name} ({number(float(furthest.values[-1]))})."
    ]


def _worst_case(run: RunFiles) -> list[str]:
    scored = [case for case in run.panels if case.scores]
    if len(scored) < 2:
        return []
    name, value = next(iter(scored[0].scores.items()))
    return [f"The worst of {len(scored)} pictured cases is {scored[0].case} ({name} {number(value)})."]
