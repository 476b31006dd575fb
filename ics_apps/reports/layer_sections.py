"""The sections about what layers put out: drift, distributions, saturation and dead units, size, gradients, streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.bands import band_chart
from ics_apps.reports.curves import ratio_chart
from ics_apps.reports.heatmaps import Map, draw_map
from ics_apps.reports.layers import LayerSummary, layer_grid, stream_ratios, summarise_layers, telling_places
from ics_apps.reports.parameter_section import parameter_section
from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.ridges import ridge_chart
from ics_apps.reports.wording import number, percent
from ics_apps.runs import layout

if TYPE_CHECKING:
    from ics_apps.reports.run_files import RunFiles

TABLE_ROWS: Final = 12
SHARE_FLOOR: Final = 0.01  # a layer whose share never reaches it has nothing to show in a map of shares


DRIFT: Final = Map(
    "drift_w1",
    "log",
    "Wasserstein-1 / std of the previous sample",
    "How far a layer's output moved between two samples: Wasserstein-1 distance in standard deviations of the "
    "previous sample (log colour scale).",
)
REFERENCE: Final = Map(
    "reference_w1",
    "log",
    "Wasserstein-1 / std of the first sample",
    "How far a layer's output is from its own first sample: Wasserstein-1 distance in standard deviations of that "
    "sample (log colour scale).",
)
_DRIFT_KL: Final = Map(
    "drift_kl",
    "log",
    "symmetrised Gaussian KL (nats)",
    "The same by the symmetrised Kullback-Leibler divergence of two Gaussians, in nats (log colour scale).",
    fold="The same as a Kullback-Leibler divergence",
)
SATURATED: Final = Map(
    "saturated_fraction",
    "small_share",
    "share of saturated values",
    "Share of a layer's values that lie where its activation is flat (0 to 1).",
)
_ZEROS: Final = Map(
    "zero_fraction",
    "share",
    "share of zeros",
    "Share of a layer's values that are exactly 0 (0 to 1); about a half is usual after a ReLU.",
    fold="Zeros of each layer",
)
_RMS: Final = Map(
    "rms",
    "around_one",
    "RMS of the output (no unit)",
    "Root mean square of each layer's output (log colour scale): orange is above 1, purple is below; a fresh norm "
    "layer stands at 1.",
)
_GRADIENT: Final = Map(
    "grad_rms",
    "log",
    "RMS of d loss / d output",
    "Root mean square of the gradient of the loss with respect to each layer's output (log colour scale).",
)
_NONE: Final = "\N{EN DASH}"
_NO_MONITOR: Final = (
    "This run was not watched: add ics_apps.callbacks.ActivationMonitor to the trainer's callbacks and run again, "
    "and its samples land in monitor/."
)
_NO_DRIFT: Final = "No drift above 0 was measured: it takes two samples of a layer; let the run go on for longer."
_NO_UNITS: Final = "No activation layer was sampled: leave activations among the layers that the monitor watches."
_NO_RMS: Final = "No RMS above 0 was measured: the monitor's files hold no finite value of it."
_NO_GRADIENT: Final = (
    "No gradient above 0 was measured: the monitor reads those of a training step; an older run's files hold none."
)
_NO_BANDS: Final = "No percentile was measured: the monitor's files hold no finite value of q15, q50 and q85."
_NO_STREAMS: Final = (
    "No pair of layers named <level>.concat.skip and <level>.concat.up was sampled: nets that join streams by "
    "ics_apps.norms.NormalizedConcat, such as the U-Net, have them."
)


def layer_sections(run: RunFiles) -> tuple[Section, ...]:
    """Build the sections that show what the monitor sampled.

    Args:
        run: Files of a run.

    Returns:
        Seven sections; one that says how to get them where there is no monitor.
    """
    monitor = run.monitor
    if monitor is None:
        return (Section("drift", "Layers: drift, dead units and streams", missing=_NO_MONITOR),)
    layers = summarise_layers(monitor)
    return (
        _drift(monitor),
        _distributions(run),
        _units(monitor, layers),
        _rms(monitor, layers),
        _gradients(monitor),
        parameter_section(monitor),
        _streams(monitor),
    )


def _drift(monitor: Any) -> Section:
    figures = as_figures(*(draw_map(monitor, what) for what in (DRIFT, REFERENCE, _DRIFT_KL)))
    return Section("drift", "Drift of each layer", figures=figures, missing="" if figures else _NO_DRIFT)


def _distributions(run: RunFiles) -> Section:
    places = telling_places(run.monitor)
    folder = run.path / layout.MONITOR
    figures = as_figures(band_chart(run.monitor, places), ridge_chart(folder, run.monitor, places))
    return Section(
        "distributions", "Distribution of a few layers", figures=figures, missing="" if figures else _NO_BANDS
    )


def _gradients(monitor: Any) -> Section:
    figures = as_figures(draw_map(monitor, _GRADIENT))
    return Section("gradients", "Gradients", figures=figures, missing="" if figures else _NO_GRADIENT)


def _units(monitor: Any, layers: tuple[LayerSummary, ...]) -> Section:
    notes: list[str] = []
    drawings = []
    for what, word in ((SATURATED, "saturated"), (_ZEROS, "zero")):
        drawing = draw_map(monitor, what, SHARE_FLOOR)
        drawings.append(drawing)
        measured = layer_grid(monitor, what.column)
        if measured is not None:
            quiet = int((np.nanmax(measured.values, axis=1) < SHARE_FLOOR).sum())
            few = f"{quiet} of {len(measured.labels)} layers stayed below {percent(SHARE_FLOOR)} {word} values."
            notes += [few] if quiet else []
    counted = [layer for layer in layers if layer.dead >= 0]
    dead = [layer for layer in counted if layer.dead > 0]
    if counted and not dead:
        notes.append("No channel was dead at the last sample.")
    return Section(
        "units",
        "Saturation and dead units",
        figures=as_figures(*drawings),
        tables=(_dead_table(dead),) if dead else (),
        note=" ".join(notes),
        missing="" if counted or notes or any(drawings) else _NO_UNITS,
    )


def _dead_table(dead: list[LayerSummary]) -> Table:
    worst = sorted(dead, key=lambda layer: -layer.dead / max(layer.channels, 1))[:TABLE_ROWS]
    rows = tuple(
        (
            layer.label,
            layer.type,
            f"{layer.dead} of {layer.channels}",
            percent(layer.dead / max(layer.channels, 1)),
            _share(layer.zero_last),
            _share(layer.saturated_last),
        )
        for layer in worst
    )
    return Table(
        ("layer", "type", "dead channels", "share dead", "zeros", "saturated"),
        rows,
        caption=f"Layers with dead channels (all zeros) at the last sample, worst first: {len(worst)} of {len(dead)}.",
    )


def _rms(monitor: Any, layers: tuple[LayerSummary, ...]) -> Section:
    figures = as_figures(draw_map(monitor, _RMS))
    rows = tuple(
        (
            layer.label,
            layer.kind,
            layer.type,
            _value(layer.drift_median),
            _value(layer.drift_peak),
            _value(layer.rms_first),
            _value(layer.rms_last),
            _value(layer.running_gap),
        )
        for layer in layers
    )
    table = Table(
        ("layer", "kind", "type", "drift, median", "drift, peak", "RMS, first", "RMS, last", "running gap"),
        rows,
        caption="Drift: Wasserstein-1 in standard deviations of the previous sample. Running gap: distance of the "
        "batch mean from the running mean at the last sample, in running standard deviations (median over channels).",
        fold=f"All {len(layers)} layers in numbers",
    )
    missing = "" if figures else _NO_RMS
    return Section("rms", "Size of each layer's output", figures=figures, tables=(table,), missing=missing)


def _streams(monitor: Any) -> Section:
    ratios = stream_ratios(monitor)
    figures = as_figures(ratio_chart(ratios)) if ratios else ()
    return Section("streams", "Skip and up streams", figures=figures, missing="" if ratios else _NO_STREAMS)


def _value(value: float) -> str:
    return number(value) if np.isfinite(value) else _NONE


def _share(value: float) -> str:
    return percent(value) if np.isfinite(value) else _NONE
