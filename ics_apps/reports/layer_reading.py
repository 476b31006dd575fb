"""What the monitor's numbers say, in plain words: drift, saturation, gradients, train/eval gap, streams, alarms.

Each function returns sentences made of numbers that stand in the run's files; nothing is judged that is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.layers import LayerSummary, layer_grid, stream_ratios, summarise_layers
from ics_apps.reports.wording import count, number, percent

if TYPE_CHECKING:
    from ics_apps.reports.alarm_files import Alarm
    from ics_apps.reports.metric_files import Series

SATURATED: Final = 0.05  # a share of saturated values worth a sentence
LAGGING: Final = 0.5  # standard deviations between batch and running means worth a sentence
NAMED_RULES: Final = 4  # the others are counted


def describe_layers(monitor: Any) -> list[str]:
    """Say what the layers did.

    Args:
        monitor: Rows of the monitor.

    Returns:
        Sentences, in the order in which people ask.
    """
    layers = summarise_layers(monitor)
    return [
        *_nonfinite_layers(layers),
        *_drift(layers),
        *_reference(monitor),
        *_dead(layers),
        *_saturated(layers),
        *_gradients(monitor),
        *_lagging(layers),
        *_streams(stream_ratios(monitor)),
    ]


def describe_alarms(alarms: Sequence[Alarm] | None) -> list[str]:
    """Say which alarms fired, first ones first; nothing where nobody watched."""
    if alarms is None:
        return []
    if not alarms:
        return ["No alarm fired."]
    rules = list(dict.fromkeys(alarm.rule for alarm in alarms))
    parts = []
    for rule in rules[:NAMED_RULES]:
        own = [alarm for alarm in alarms if alarm.rule == rule]
        layers = len({alarm.layer for alarm in own})
        where = f"in {count(layers, 'layer')}" if layers > 1 else f"in {own[0].layer}" if own[0].layer else ""
        parts.append(f"{rule} {where}".rstrip() + f" {'from' if len(own) > 1 else 'at'} step {own[0].step}")
    rest = f"; and {count(len(rules) - NAMED_RULES, 'other rule')}" if len(rules) > NAMED_RULES else ""
    return [f"{count(len(alarms), 'alarm')} fired: {'; '.join(parts)}{rest}."]


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


def _reference(monitor: Any) -> list[str]:
    grid = layer_grid(monitor, "reference_w1")
    if grid is None:
        return []
    peaks = np.nanmax(grid.values, axis=1)
    most = int(np.argmax(peaks))
    course = grid.values[most]
    half = int(grid.steps[np.argmax(np.where(np.isfinite(course), course, -np.inf) >= peaks[most] / 2)])
    at = int(grid.steps[np.nanargmax(course)])
    sentence = (
        f"Furthest from its first sample is {grid.labels[most]}, by {number(peaks[most])} standard deviations at step "
        f"{at}"
    )
    sentence += f" (half of that by step {half})" if half < at else ""
    if len(peaks) > 2:
        sentence += f"; the median of the largest distances of all {len(peaks)} layers is {number(np.median(peaks))}"
    return [f"{sentence}."]


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


def _gradients(monitor: Any) -> list[str]:
    grid = layer_grid(monitor, "grad_rms")
    if grid is None or len(grid.labels) < 2:
        return []
    ends = grid.values[[0, -1]]
    both = np.flatnonzero(np.isfinite(ends).all(axis=0) & (ends > 0).all(axis=0))
    if not len(both):
        return []
    ratios = ends[0, both] / ends[1, both]
    place = both[-1]
    sentence = (
        f"At step {grid.steps[place]} the gradient's RMS is {number(ends[0, place])} in the first layer "
        f"({grid.labels[0]}) and {number(ends[1, place])} in the last ({grid.labels[-1]}), {_times(ratios[-1])}"
    )
    return [f"{sentence}; at step {grid.steps[both[0]]} {_times(ratios[0])}." if len(both) > 1 else f"{sentence}."]


def _times(ratio: float) -> str:
    larger, times = ("first", ratio) if ratio >= 1 else ("last", 1 / ratio)
    return f"the {larger} {number(times)} times the other"


def _lagging(layers: Sequence[LayerSummary]) -> list[str]:
    counted = [layer for layer in layers if np.isfinite(layer.running_gap)]
    worst = max(counted, key=lambda layer: layer.running_gap, default=None)
    if worst is None:
        return []
    if worst.running_gap < LAGGING:
        spreads = [layer.running_var_gap for layer in counted if np.isfinite(layer.running_var_gap)]
        times = f", variances at most {number(float(np.exp(max(spreads))))} times" if spreads else ""
        return [
            f"Over {count(len(counted), 'norm')} the batch's means are at most {number(worst.running_gap)} standard "
            f"deviations from the running ones at the last sample ({worst.label}){times}."
        ]
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
