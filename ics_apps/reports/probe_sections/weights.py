"""The section about weights whose scale a norm takes away: how far a step turns them, and what weight decay does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.layers import Grid, labels_of, layer_grid
from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.probe_sections.charts import Chart, band, course, draw_chart, line, spread, value_axis
from ics_apps.reports.probe_sections.maps import ProbeMap, probe_map
from ics_apps.reports.probe_sections.tables import value_of
from ics_apps.reports.svg import COLOURS
from ics_apps.reports.wording import count, number, printable, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.svg import Drawing

_ROTATION: Final = Chart("probe-rotation", "Rotation of the weights by a step", "angle (radians)")
_RATE: Final = Chart(
    "probe-effective-lr", "Effective learning rate", "learning rate / |w|, or / |w|\N{SUPERSCRIPT TWO}"
)
_RATIO: Final = ProbeMap(
    "probe-rotation-ratio",
    "Measured over expected rotation of each weight",
    "rotation / expected rotation (no unit)",
    "Rotation of a weight by one step over that of its equilibrium (log colour scale): orange turns faster, purple "
    "slower, and white is in balance.",
    scale="around_one",
)
_BAND: Final = "15th to 85th percentile of weights"


def scale_invariance_section(table: Any) -> Section:
    """Build the section about scale-invariant weights."""
    rotation, expected = layer_grid(table, "rotation"), layer_grid(table, "expected_rotation")
    drawings = (
        _rotation_chart(rotation, expected),
        _rate_chart(layer_grid(table, "effective_lr")),
        probe_map(_ratio_grid(table), _RATIO),
    )
    figures = as_figures(*drawings)
    missing = "" if figures else "No rotation was measured: probes/scale_invariance.csv holds no finite one."
    return Section(
        "scale_invariance",
        "Scale-invariant weights",
        figures=figures,
        tables=(_table(table),),
        note=_decay_sentence(table),
        missing=missing,
    )


def _decay_sentence(table: Any) -> str:
    latest = table.drop_duplicates("place", keep="last")
    decay = latest["weight_decay"].to_numpy()
    known = decay[np.isfinite(decay)]
    if not len(known):
        return ""
    decayed = known[known > 0]
    of = f"{len(decayed)} of {count(len(known), 'weight')}"
    if not len(decayed):
        return (
            f"No weight decay acts on the {count(len(known), 'weight')} whose scale a norm takes away: a plain "
            "gradient step only lets their norm grow, and their effective learning rate falls by itself."
        )
    low, high = tick(float(decayed.min())), tick(float(decayed.max()))
    amount = low if low == high else f"{low} to {high}"
    angles = latest["expected_rotation"].to_numpy()
    angles = angles[np.isfinite(angles)]
    turn = f", about {number(float(np.median(angles)))} radians a step once norms have settled" if len(angles) else ""
    return (
        f"Weight decay of {amount} acts on {of} whose scale a norm takes away. It does not limit what the net computes "
        f"there: it sets how far a step turns these weights{turn}."
    )


def _rotation_chart(rotation: Grid | None, expected: Grid | None) -> Drawing | None:
    if rotation is None:
        return None
    low, middle, high = spread(rotation.values)

    def paint(axes: Any) -> None:
        band(axes, rotation.steps, (low, high), "15th to 85th %")
        line(axes, rotation.steps, middle, "median weight")
        drawn = [low, middle, high]
        if expected is not None:
            usual = spread(expected.values)[1]
            line(axes, expected.steps, usual, "expected", COLOURS[1], linestyle=(0, (4, 3)))
            drawn.append(usual)
        value_axis(axes, drawn, log=True)

    reading = f"At step {rotation.steps[-1]} a step turned the median weight by {number(middle[-1])} radians"
    if expected is not None:
        reading += f"; {number(float(spread(expected.values)[1][-1]))} are expected in equilibrium"
    return draw_chart(_ROTATION, paint, f"{reading}. Band: {_BAND} (log axis).", rotation.steps)


def _rate_chart(rate: Grid | None) -> Drawing | None:
    if rate is None:
        return None
    low, middle, high = spread(rate.values)

    def paint(axes: Any) -> None:
        band(axes, rate.steps, (low, high), "15th to 85th %", COLOURS[2])
        line(axes, rate.steps, middle, "median weight", COLOURS[2])
        value_axis(axes, (low, middle, high), log=True)

    caption = (
        f"The median weight's effective learning rate was {course(rate.steps, middle)}. Learning rate over "
        "|w|\N{SUPERSCRIPT TWO}, for Adam over |w| (log axis)."
    )
    return draw_chart(_RATE, paint, caption, rate.steps)


def _ratio_grid(table: Any) -> Grid | None:
    expected = table["expected_rotation"].to_numpy()
    known = np.where(expected > 0, expected, np.nan)
    ratio: NDArray[np.float64] = table["rotation"].to_numpy() / known
    return layer_grid(table.assign(ratio=ratio), "ratio")


def _table(table: Any) -> Table:
    latest = table.drop_duplicates("place", keep="last").sort_values("place")
    columns = ("norm", "effective_lr", "rotation", "expected_rotation", "weight_decay")
    rows = tuple(
        (printable(name), *(value_of(value) for value in values))
        for name, values in zip(labels_of(latest), latest[[*columns]].to_numpy(), strict=True)
    )
    header = ("weight", "|w|", "effective learning rate", "rotation", "expected", "weight decay")
    return Table(header, rows, fold=f"{count(len(rows), 'scale-invariant weight')} in numbers, at the last measurement")
