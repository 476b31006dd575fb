"""The sections of probes that look at each layer: drift of inputs, conditioning, gradient flow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.layers import Grid, layer_grid
from ics_apps.reports.probe_sections.maps import ProbeMap, probe_map
from ics_apps.reports.probe_sections.tables import damping_of, largest, layer_section
from ics_apps.reports.wording import number

if TYPE_CHECKING:
    from ics_apps.reports.parts import Section

_REFERENCE: Final = ProbeMap(
    "probe-input-reference",
    "Drift of each layer's input since the start",
    "Wasserstein-1 / std of the first measurement",
    "How far the distribution that enters a layer is from that of the first measurement (log colour scale).",
)
_DRIFT: Final = ProbeMap(
    "probe-input-drift",
    "Drift of each layer's input between two measurements",
    "Wasserstein-1 / std of the previous measurement",
    "How far the distribution that enters a layer moved since the measurement before (log colour scale).",
    fold="The same between two measurements",
)
_CONDITION: Final = ProbeMap(
    "probe-condition",
    "Condition of each layer's input",
    "log10 condition",
    "Logarithm of the condition number of E[h h'], the second moments of a layer's input h: 0 where all directions are "
    "equally strong; each unit more is a factor of 10 between the strongest and the weakest. The damping is added to "
    "both ends.",
    scale="linear",
)
_GRADIENT: Final = ProbeMap(
    "probe-gradient-norm",
    "Gradient of each layer",
    "norm of d loss / d weights",
    "Euclidean norm of the gradient of the loss with respect to a layer's weights (log colour scale).",
)
_SNR: Final = ProbeMap(
    "probe-gradient-snr",
    "Signal in the gradient",
    "signal-to-noise ratio (no unit)",
    "Size of the gradient's mean over that of its noise (log colour scale): below 1 a batch says more about itself "
    "than about the data.",
)


def input_drift_section(table: Any) -> Section:
    """Build the section about the distribution of inputs."""
    reference = layer_grid(table, "reference_w1")
    reading = ""
    if reference is not None:
        label, value, median = largest(reference)
        reading = (
            f"At step {reference.steps[-1]} the input of {label} was {number(value)} standard deviations away from "
            f"where it began, that of the median layer {number(median)}."
        )
    drawings = (probe_map(reference, _REFERENCE, reading), probe_map(layer_grid(table, "drift_w1"), _DRIFT))
    columns = {
        "mean": "mean",
        "std": "std",
        "15 %": "q15",
        "median": "q50",
        "85 %": "q85",
        "from the first": "reference_w1",
    }
    return layer_section(
        "input_drift",
        "Drift of inputs",
        drawings,
        table,
        columns,
        "No drift above 0 was measured, which takes two measurements",
    )


def conditioning_section(table: Any) -> Section:
    """Build the section about the condition of inputs."""
    positive = table[table["condition"].to_numpy() > 0]
    grid = layer_grid(positive, "condition")
    damping = damping_of(table)
    drawing = None
    if grid is not None:
        label, value, median = largest(grid)
        reading = (
            f"At step {grid.steps[-1]} the input of {label} was the worst conditioned, {number(value)}; the median "
            f"layer's was {number(median)}."
        )
        logarithm = Grid(grid.labels, grid.kinds, grid.steps, np.log10(grid.values))
        unit = f"log10 condition ({damping})" if damping else _CONDITION.unit
        drawing = probe_map(logarithm, replace(_CONDITION, unit=unit), reading)
    columns = {
        "features": "features",
        f"condition ({damping})" if damping else "condition": "condition",
        "effective rank": "effective_rank",
    }
    return layer_section("conditioning", "Conditioning", (drawing,), table, columns, "No condition was measured")


def gradient_flow_section(table: Any) -> Section:
    """Build the section about gradients from the last layer to the first."""
    norm, snr = layer_grid(table, "grad_norm"), layer_grid(table, "snr")
    drawings = (probe_map(norm, _GRADIENT, _flow_reading(norm)), probe_map(snr, _SNR, _snr_reading(snr)))
    columns = {"|gradient|": "grad_norm", "signal / noise": "snr"}
    return layer_section("gradient_flow", "Gradient flow", drawings, table, columns, "No gradient above 0 was measured")


def _flow_reading(norm: Grid | None) -> str:
    if norm is None:
        return ""
    last = norm.values[:, -1]
    measured = np.flatnonzero(np.isfinite(last))
    first, end = float(last[measured[0]]), float(last[measured[-1]])
    sentence = (
        f"At step {norm.steps[-1]} the gradient's norm was {number(first)} in the first layer and {number(end)} in "
        "the last"
    )
    if len(measured) < 2 or not (first > 0 and end > 0):
        return f"{sentence}."
    ratio = first / end
    return f"{sentence}, {number(max(ratio, 1 / ratio))} times {'more' if ratio > 1 else 'less'} in the first."


def _snr_reading(snr: Grid | None) -> str:
    if snr is None:
        return ""
    last = snr.values[:, -1]
    last = last[np.isfinite(last)]
    return (
        f"At step {snr.steps[-1]} the median layer's signal-to-noise ratio was {number(float(np.median(last)))}; "
        f"{int((last < 1).sum())} of {len(last)} layers were below 1."
    )
