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
        labels: One label a row, in forward order; a layer that runs several times a step has a row for each call.
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
        label: Layer name, with the call index where the layer runs several times a step.
        layer: Layer name.
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
        running_gap: Gap of the running statistics at the last sample (standard deviations).
        nonfinite_step: First step with a value that is not finite, -1 if there was none.
    """

    label: str
    layer: str
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
    nonfinite_step: int


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
    peaks = rows.groupby(["layer", "call"])[column].transform("max") if len(rows) else rows[column]
    rows = rows[peaks.to_numpy() >= floor]
    if rows.empty:
        return None
    steps = np.unique(rows["step"].to_numpy())
    several = _layers_called_often(monitor)
    groups = _in_forward_order(rows)
    values = np.full((len(groups), len(steps)), np.nan)
    for position, (_, group) in enumerate(groups):
        values[position, np.searchsorted(steps, group["step"].to_numpy())] = group[column].to_numpy()
    return Grid(
        labels=tuple(_label(layer, call, several) for (layer, call), _ in groups),
        kinds=tuple(str(group["kind"].iloc[-1]) for _, group in groups),
        steps=steps,
        values=values,
    )


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
    for (layer, _), group in _in_forward_order(monitor):
        found = _STREAM.match(layer)
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
    several = _layers_called_often(monitor)
    return tuple(_summary(layer, call, group, several) for (layer, call), group in _in_forward_order(monitor))


def _summary(layer: str, call: int, group: Any, several: set[str]) -> LayerSummary:
    drift = group["drift_w1"].to_numpy()
    measured = np.isfinite(drift)
    peak = int(np.argmax(np.where(measured, drift, -np.inf)))
    nonfinite = group["step"].to_numpy()[group["nonfinite_count"].to_numpy() > 0]
    last = group.iloc[-1]
    return LayerSummary(
        label=_label(layer, call, several),
        layer=layer,
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
        nonfinite_step=int(nonfinite[0]) if len(nonfinite) else -1,
    )


def _in_forward_order(rows: Any) -> list[tuple[tuple[str, int], Any]]:
    groups = [((str(layer), int(call)), group) for (layer, call), group in rows.groupby(["layer", "call"], sort=False)]
    return sorted(groups, key=lambda item: (int(item[1]["order"].iloc[0]), item[0][1]))


def _layers_called_often(monitor: Any) -> set[str]:
    return {str(layer) for layer in monitor.loc[monitor["call"] > 0, "layer"].unique()}


def _label(layer: str, call: int, several: set[str]) -> str:
    return f"{layer} (call {call})" if layer in several else layer
