"""The section about internal covariate shift: how a layer's gradient changes when the layers below it step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.layers import Grid, layer_grid
from ics_apps.reports.probe_sections.charts import Chart, band, course, draw_chart, line, spread, value_axis
from ics_apps.reports.probe_sections.maps import ProbeMap, probe_map
from ics_apps.reports.probe_sections.tables import largest, layer_section
from ics_apps.reports.wording import number

if TYPE_CHECKING:
    from ics_apps.reports.parts import Section
    from ics_apps.reports.svg import Drawing

_SHIFT: Final = ProbeMap(
    "probe-ics-shift",
    "Internal covariate shift of each layer",
    "|change of the gradient| / |gradient|",
    "How much a layer's gradient on the same batch changes when the layers below it take their step and it does not, "
    "as a share of its length (log colour scale). The first layer has none by definition.",
)
_COSINE: Final = ProbeMap(
    "probe-ics-cosine",
    "Direction of the gradient before and after",
    "cosine (no unit)",
    "Cosine of the angle between the two gradients: 1 where the steps below did not turn it, 0 where nothing is left "
    "of its direction.",
    scale="linear",
    lowest=True,
)
_SHIFT_MEDIAN: Final = Chart(
    "probe-ics-median", "Internal covariate shift of the net", "|change| / |gradient|", wide=True
)


def ics_section(table: Any) -> Section:
    """Build the section about the shift of gradients."""
    shift, cosine = layer_grid(table, "relative_shift"), layer_grid(table, "cosine")
    above = table[table["order"].to_numpy() != 0]  # the shift of the first layer is 0 whatever the net
    drawings = (
        probe_map(shift, _SHIFT, _shift_reading(shift, cosine, above)),
        probe_map(cosine, _COSINE, _cosine_reading(cosine, above)),
        _median_chart(layer_grid(above, "relative_shift")),
    )
    columns = {
        "|gradient|": "grad_norm",
        "|change|": "shift",
        "|change| / |gradient|": "relative_shift",
        "cosine": "cosine",
    }
    return layer_section("ics", "Internal covariate shift", drawings, table, columns, "No shift above 0 was measured")


def _shift_reading(shift: Grid | None, cosine: Grid | None, above: Any) -> str:
    if shift is None:
        return ""
    label, value, _ = largest(shift)
    turned = ""
    if cosine is not None and label in cosine.labels and cosine.steps[-1] == shift.steps[-1]:
        last = float(cosine.values[cosine.labels.index(label), -1])
        turned = f" (cosine {number(last)})" if np.isfinite(last) else ""
    sentence = (
        f"At step {shift.steps[-1]} the gradient of {label} changed by {number(value)} of its length when the layers "
        f"below stepped{turned}"
    )
    median = _median(above, "relative_shift", int(shift.steps[-1]))
    return f"{sentence}; the median layer's by {median}." if median else f"{sentence}."


def _cosine_reading(cosine: Grid | None, above: Any) -> str:
    if cosine is None:
        return ""
    last = cosine.values[:, -1]
    least = int(np.nanargmin(last))
    sentence = (
        f"At step {cosine.steps[-1]} the gradient of {cosine.labels[least]} turned most, to a cosine of "
        f"{number(float(last[least]))}"
    )
    median = _median(above, "cosine", int(cosine.steps[-1]))
    return f"{sentence}; the median layer's was {median}." if median else f"{sentence}."


def _median(above: Any, column: str, step: int) -> str:
    """Spell the median over the layers above the first; "" where there are fewer than two."""
    values = above[above["step"].to_numpy() == step][column].to_numpy()
    values = values[np.isfinite(values)]
    return number(float(np.median(values))) if len(values) > 1 else ""


def _median_chart(shift: Grid | None) -> Drawing | None:
    if shift is None or len(shift.labels) < 2:
        return None
    low, middle, high = spread(shift.values)

    def paint(axes: Any) -> None:
        band(axes, shift.steps, (low, high), "15th to 85th percentile of layers")
        line(axes, shift.steps, middle, "median layer")
        value_axis(axes, (low, middle, high), log=True)

    return draw_chart(
        _SHIFT_MEDIAN,
        paint,
        f"As a share of its length, the median layer's gradient changed by {course(shift.steps, middle)} (log axis). "
        "The first layer is left out.",
        shift.steps,
    )
