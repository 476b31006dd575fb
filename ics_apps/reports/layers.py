"""Turns the monitor's rows into what the page shows: grids of layer by step, ratios of streams, one summary a layer.

Numbers only: words are in `reading`, figures in `heatmaps` and `curves`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.metric_files import Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STREAM: Final = re.compile(r"^(?:(?P<level>.*)\.)?concat\.(?P<side>skip|up)$")


@dataclass(frozen=True)
class Grid:
    """One statistic over layers and steps.

    Attributes:
        labels: One label a row, in forward order: a layer has one for each tag and call.
        kinds: Kind of each row (norm, conv, linear, activation, stream).
        steps: int64 (T,).
        values: float64 (rows, T), NaN where not measured.
    """

    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class LayerSummary:
    """What one row of the layer table says; NaN and -1 stand for not applicable.

    Attributes:
        label: Layer name, with its tag and call (`label`).
        kind: norm, conv, linear, activation or stream.
        type: Class name.
        drift_median: Median over the samples of `drift_w1` (standard deviations of the previous sample).
        drift_peak: Largest drift.
        drift_peak_step: Step of the largest drift.
        rms_first: RMS at the first sample.
        rms_last: RMS at the last sample.
        zero_last: Share of zeros at the last sample.
        saturated_last: Share of saturated values at the last sample.
        dead: Dead channels at the last sample.
        channels: Channels.
        running_gap: Gap of the running means at the last sample (standard deviations).
        running_var_gap: Gap of the running variances at the last sample (of their logarithms).
        nonfinite_step: First step with a value that is not finite, -1 if there was none.
    """

    label: str
    kind: str
    type: str
    drift_median: float
    drift_peak: float
    drift_peak_step: int
    rms_first: float
    rms_last: float
    zero_last: float
    saturated_last: float
    dead: int
    channels: int
    running_gap: float
    running_var_gap: float
    nonfinite_step: int


def label(layer: str, tag: str = "", call: int = 0) -> str:
    """Name a row as the alarms do: first name of the layer, then its tag and, from the second on, its call.

    Example:
        >>> label("net.act+net.head.act"), label("disc", call=1), label("disc", "fake", 1)
        ('net.act', 'disc#1', 'disc#fake.1')
    """
    parts = [part for part in (tag, str(call or "")) if part]
    return layer.split("+", maxsplit=1)[0] + ("#" + ".".join(parts) if parts else "")


def layer_grid(monitor: Any, column: str, floor: float = -np.inf) -> Grid | None:
    """Arrange a column of the monitor as layers by steps.

    Args:
        monitor: Rows of the monitor, as `RunFiles.monitor`.
        column: A float column.
        floor: Layers whose values all lie below it are left out.

    Returns:
        Layers with a finite value somewhere, and the steps at which any of them has one; None where there are none.
    """
    rows = monitor[np.isfinite(monitor[column].to_numpy())]
    peaks = rows.groupby("place")[column].transform("max") if len(rows) else rows[column]
    rows = rows[peaks.to_numpy() >= floor]
    if rows.empty:
        return None
    steps, columns = np.unique(rows["step"].to_numpy(), return_inverse=True)
    places, last = np.unique(rows["place"].to_numpy()[::-1], return_index=True)
    values = np.full((len(places), len(steps)), np.nan)
    values[np.searchsorted(places, rows["place"].to_numpy()), columns] = rows[column].to_numpy()
    latest = rows.iloc[len(rows) - 1 - last]
    return Grid(
        labels=labels_of(latest),
        kinds=tuple(str(kind) for kind in latest["kind"]),
        steps=steps,
        values=values,
    )


def labels_of(rows: Any) -> tuple[str, ...]:
    """Label each of some rows of the monitor."""
    return tuple(label(*key) for key in zip(rows["layer"], rows["tag"], rows["call"], strict=True))


def telling_places(monitor: Any, most: int = 6) -> tuple[int, ...]:
    """Choose the few rows to look at closely: the first and the last layer, and those furthest from their first sample.

    Args:
        monitor: Rows of the monitor.
        most: Rows to choose, >= 2.

    Returns:
        Places in forward order, of rows whose median was measured. A file without the distance to the first sample
        is judged by the largest distance between two samples.
    """
    measured = monitor[np.isfinite(monitor["q50"].to_numpy())]
    if measured.empty:
        return ()
    column = "reference_w1" if np.isfinite(measured["reference_w1"].to_numpy()).any() else "drift_w1"
    peaks = measured.groupby("place")[column].max()
    ends = [int(peaks.index[0]), int(peaks.index[-1])]
    ranked = [int(place) for place in peaks.dropna().sort_values(ascending=False, kind="stable").index]
    return tuple(sorted(list(dict.fromkeys([*ends, *ranked]))[:most]))


def stream_ratios(monitor: Any) -> tuple[Series, ...]:
    r"""Divide the RMS of each skip stream by that of the up stream it is concatenated with.

    .. math:: r_t = \mathrm{RMS}(skip_t) / \mathrm{RMS}(up_t)

    Args:
        monitor: Rows of the monitor; streams are the layers `<level>.concat.skip` and `<level>.concat.up`.

    Returns:
        One series a level, named by the level, in forward order, at the steps where both were sampled and up is not 0.

    Reference: ours.
    """
    sides: dict[str, dict[str, dict[int, float]]] = {}
    for _, group in monitor[_is_stream(monitor)].groupby("place"):
        found = _STREAM.match(label(str(group["layer"].iloc[0])))
        if found:
            side = sides.setdefault(found["level"] or "concat", {}).setdefault(found["side"], {})
            for step, rms in zip(group["step"].tolist(), group["rms"].tolist(), strict=True):
                side.setdefault(step, rms)  # the first call of a step stands for it
    ratios = []
    for level, pair in sides.items():
        skip, up = pair.get("skip", {}), pair.get("up", {})
        points = {step: skip[step] / up[step] for step in sorted(skip.keys() & up.keys()) if up[step] > 0}
        points = {step: ratio for step, ratio in points.items() if 0 < ratio < float("inf")}
        if points:
            ratios.append(Series(level, np.array([*points], dtype=np.int64), np.array([*points.values()])))
    return tuple(ratios)


def summarise_layers(monitor: Any) -> tuple[LayerSummary, ...]:
    """Summarise each layer (and call) over the run, in forward order."""
    return tuple(_summary(group) for _, group in monitor.groupby("place"))


def _summary(group: Any) -> LayerSummary:
    drift = group["drift_w1"].to_numpy()
    measured = np.isfinite(drift)
    peak = int(np.argmax(np.where(measured, drift, -np.inf)))
    nonfinite = group["step"].to_numpy()[group["nonfinite_count"].to_numpy() > 0]
    last = group.iloc[-1]
    return LayerSummary(
        label=labels_of(group.iloc[-1:])[0],
        kind=str(last["kind"]),
        type=str(last["type"]),
        drift_median=float(np.median(drift[measured])) if measured.any() else float("nan"),
        drift_peak=float(drift[peak]) if measured.any() else float("nan"),
        drift_peak_step=int(group["step"].iloc[peak]) if measured.any() else -1,
        rms_first=float(group["rms"].iloc[0]),
        rms_last=float(last["rms"]),
        zero_last=float(last["zero_fraction"]),
        saturated_last=float(last["saturated_fraction"]),
        dead=int(last["dead_channels"]),
        channels=int(last["channels"]),
        running_gap=float(last["running_gap"]),
        running_var_gap=float(last["running_var_gap"]),
        nonfinite_step=int(nonfinite[0]) if len(nonfinite) else -1,
    )


def _is_stream(monitor: Any) -> NDArray[np.bool_]:
    streams = {layer for layer in monitor["layer"].unique() if _STREAM.match(label(layer))}
    found: NDArray[np.bool_] = monitor["layer"].isin(streams).to_numpy()
    return found
