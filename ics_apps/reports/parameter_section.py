"""The section about parameters: how fast weights change, effective learning rates, noise of batch statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.heatmaps import Map, draw_map
from ics_apps.reports.layers import layer_grid
from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.wording import number

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UPDATE: Final = Map(
    "update_ratio",
    "log",
    "|change of w| / |w| in one step",
    "How much of a layer's weight one optimizer step changed (log colour scale).",
)
_RATE: Final = Map(
    "effective_lr",
    "log",
    "learning rate / |w|\N{SUPERSCRIPT TWO}",
    "Effective learning rate of weights whose scale a norm behind them takes away (log colour scale).",
    fold="Effective learning rate",
)
_COLUMNS: Final = ("update_ratio", "effective_lr", "weight_norm", "batch_noise")
_NOT_MEASURED: Final = (
    "No weight was measured: the monitor reads weights around a step; an older run's files hold none."
)
_NONE: Final = "\N{EN DASH}"


def parameter_section(monitor: Any) -> Section:
    """Build the section about parameters from the rows of the monitor."""
    figures = as_figures(draw_map(monitor, _UPDATE), draw_map(monitor, _RATE))
    table = _table(monitor)
    missing = "" if figures or table else _NOT_MEASURED
    return Section("parameters", "Parameters", figures=figures, tables=table, missing=missing)


def _table(monitor: Any) -> tuple[Table, ...]:
    columns: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in _COLUMNS:
        grid = layer_grid(monitor, name)
        values = () if grid is None else ((row[np.isfinite(row)]) for row in grid.values)
        columns[name] = {} if grid is None else dict(zip(grid.labels, values, strict=True))
    measured = {label for column in columns.values() for label in column}
    if not measured:
        return ()
    order = layer_grid(monitor.assign(measured=1.0), "measured")
    labels = [label for label in (order.labels if order else ()) if label in measured]
    update, rate, norm, noise = (columns[name] for name in _COLUMNS)
    rows = tuple(
        (
            label,
            number(float(np.median(update[label]))) if label in update else _NONE,
            _log10(update[label]) if label in update else _NONE,
            _first_and_last(rate.get(label)),
            _first_and_last(norm.get(label)),
            number(float(np.median(noise[label]))) if label in noise else _NONE,
        )
        for label in labels
    )
    caption = (
        "Update: |change of w| / |w| in one step, median over the samples, then its log10 at the last one. Effective "
        "learning rate: learning rate / |w|\N{SUPERSCRIPT TWO}, where a norm follows. Noise of the batch: standard "
        "error of a batch's mean, in standard deviations, of norms that pool the batch."
    )
    header = ("layer", "update", "log10, last", "effective learning rate", "|w|", "noise of the batch")
    return (Table(header, rows, caption=caption, fold=f"Parameters of {len(rows)} layers in numbers"),)


def _log10(values: NDArray[np.float64]) -> str:
    last = float(values[-1])
    return f"{np.log10(last):.1f}".replace("-", "\N{MINUS SIGN}") if last > 0 else _NONE


def _first_and_last(values: NDArray[np.float64] | None) -> str:
    if values is None:
        return _NONE
    first, last = number(float(values[0])), number(float(values[-1]))
    return first if first == last else f"{first} \N{RIGHTWARDS ARROW} {last}"
