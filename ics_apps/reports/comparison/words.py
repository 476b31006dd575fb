"""The paragraph at the top of a comparison: every number stands in the runs' files, nothing is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ics_apps.reports.comparison.headline import best_run
from ics_apps.reports.wording import count, number

if TYPE_CHECKING:
    from ics_apps.reports.layers import Grid
    from ics_apps.reports.metric_files import Series
    from ics_apps.reports.run_files import RunFiles

METRICS: Final = 3  # that get a sentence
NAMED: Final = 4  # runs whose values are told beside the best one's
SETTINGS: Final = 3  # that are named


def settings_words(changed: Mapping[str, tuple[str, ...]]) -> str:
    """Say how many settings differ, and which if they are few."""
    if not changed:
        return "No setting differs."
    if len(changed) > SETTINGS:
        return f"{len(changed)} settings differ."
    return f"{count(len(changed), 'setting')} differ{'s' if len(changed) == 1 else ''}: {', '.join(changed)}."


def metric_words(metrics: Mapping[str, Sequence[float]], labels: Sequence[str]) -> list[str]:
    """Say who is best in the first metrics that can be judged."""
    sentences = []
    for name, values in metrics.items():
        first = best_run(name, values)
        if first is None or "loss" in name:
            continue
        best = [place for place, value in enumerate(values) if value == values[first]]
        others = [place for place, value in enumerate(values) if np.isfinite(value) and place not in best]
        others.sort(key=lambda place: abs(values[place] - values[first]))
        rest = [f"{number(values[place])} in {labels[place]}" for place in others[:NAMED]]
        rest += [f"worse in {count(len(others) - NAMED, 'more run')}"] if len(others) > NAMED else []
        where = join([labels[place] for place in best])
        if rest:
            sentences.append(f"{name} is best in {where} ({number(values[first])}); it is {join(rest)}.")
        else:
            sentences.append(f"{name} is {number(values[first])} in {where}.")
        if len(sentences) == METRICS:
            break
    return sentences


def drift_words(medians: Sequence[Series | None], labels: Sequence[str]) -> list[str]:
    """Say how far the median layer was from its first sample at each run's last sample."""
    ends = [
        f"{number(float(series.values[-1]))} in {label}"
        for series, label in zip(medians, labels, strict=True)
        if series is not None
    ]
    if len(ends) < 2:
        return []
    return [
        f"Distance of the median layer from its first sample, at the last one, in standard deviations: {join(ends)}."
    ]


def layer_words(grids: Sequence[Grid], labels: Sequence[str], common: Sequence[str]) -> list[str]:
    """Name the common layer whose largest distance from its first sample differs most between runs, as a ratio."""
    if len(grids) < 2 or not common:
        return []
    peaks = np.array([[np.nanmax(grid.values[grid.labels.index(name)]) for name in common] for grid in grids])
    if not (peaks > 0).all(axis=0).any():
        return []
    ratios = np.where((peaks > 0).all(axis=0), peaks.max(axis=0) / np.maximum(peaks.min(axis=0), 1e-300), 0)
    most = int(np.argmax(ratios))
    parts = join([f"{number(float(peak))} in {label}" for peak, label in zip(peaks[:, most], labels, strict=True)])
    return [f"The layer whose largest distance differs most is {common[most]}: {parts}."]


def alarm_words(runs: Sequence[RunFiles], labels: Sequence[str]) -> str:
    """Say how many alarms fired in each run that was watched."""
    watched = [
        f"{len(run.alarms) or 'none'} in {label}"
        for run, label in zip(runs, labels, strict=True)
        if run.alarms is not None
    ]
    unwatched = [label for run, label in zip(runs, labels, strict=True) if run.alarms is None]
    if not watched:
        return "Nobody watched for alarms."
    if not any(run.alarms for run in runs) and not unwatched:
        return "No alarm fired."
    tail = f"; {join(unwatched)} {'was' if len(unwatched) == 1 else 'were'} not watched" if unwatched else ""
    return f"Alarms: {join(watched)}{tail}."


def join(parts: Sequence[str]) -> str:
    """Join words.

    Example:
        >>> join(["a", "b", "c"]), join(["a"])
        ('a, b and c', 'a')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
