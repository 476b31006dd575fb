"""The chart of the Hessian's spectral density: both axes span decades, and eigenvalues have two signs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.probe_sections.charts import Chart, draw_chart, value_axis
from ics_apps.reports.svg import COLOURS
from ics_apps.reports.wording import number, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.svg import Drawing

FLOOR: Final = 1e-10  # of the highest density; a single eigenvalue of a net of n weights has a mass of 1 / n

_LINEAR: Final = 1e-4  # eigenvalues below this share of the largest stand on the linear part of the axis at least
_DENSITY: Final = Chart(
    "probe-density",
    "Spectral density of the Hessian",
    "density (per unit of eigenvalue)",
    x_label="eigenvalue",
    wide=True,
)


def density_chart(table: Any) -> Drawing | None:
    """Draw the density of the first and the last measurement.

    Args:
        table: Rows of `spectral_density`.

    Returns:
        The drawing; None where no density above 0 was measured.
    """
    rows = table[np.isfinite(table["eigenvalue"].to_numpy()) & np.isfinite(table["density"].to_numpy())]
    if not (rows["density"].to_numpy() > 0).any():
        return None
    ends = dict.fromkeys((int(rows["step"].iloc[0]), int(rows["step"].iloc[-1])))
    curves = {step: _curve(rows[rows["step"].to_numpy() == step]) for step in ends}
    highest = max(float(density.max()) for _, density in curves.values())
    lowest = FLOOR * highest
    reach = {step: grid[density >= lowest] for step, (grid, density) in curves.items()}

    def paint(axes: Any) -> None:
        for place, (step, (grid, density)) in enumerate(curves.items()):
            marker = "o" if len(grid) == 1 else ""
            # What lies below the axis leads out of it, rather than straight to the next peak.
            shown = np.maximum(density, lowest / 100)
            axes.plot(
                grid, shown, color=COLOURS[place], linewidth=1.4, label=f"step {step}", marker=marker, markersize=4
            )
        value_axis(axes, [np.array([lowest, highest])], log=True)
        _both_signs(axes, np.concatenate([*reach.values()]), _spacing([grid for grid, _ in curves.values()]))

    parts = [
        f"from {number(float(grid.min()))} to {number(float(grid.max()))} at step {step}"
        for step, grid in reach.items()
        if len(grid)
    ]
    return draw_chart(
        _DENSITY,
        paint,
        f"The smoothed spectrum reached {' and '.join(parts)}, where its density is above {tick(FLOOR)} of the "
        "highest. Both axes are logarithmic; about 0 that of eigenvalues is linear, as far as one point of the grid. "
        "What lies left of 0 are directions in which the loss curves downwards.",
    )


def _curve(rows: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ordered = rows.sort_values("eigenvalue")
    return ordered["eigenvalue"].to_numpy(), ordered["density"].to_numpy()


def _spacing(grids: list[NDArray[np.float64]]) -> float:
    """The finest distance between eigenvalues that a grid tells apart; 0 where no grid has two points."""
    return min((float(np.median(np.diff(grid))) for grid in grids if len(grid) > 1), default=0.0)


def _both_signs(axes: Any, reach: NDArray[np.float64], spacing: float) -> None:
    """Make the axis of eigenvalues logarithmic on both sides of 0, beyond what the grid tells apart."""
    from matplotlib.ticker import FixedLocator, NullLocator

    largest = float(np.abs(reach).max())
    if largest == 0:
        return
    first = math.floor(math.log10(max(spacing, largest * _LINEAR)))
    low, high = float(reach.min()), float(reach.max())
    axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.5)
    decades = [10.0**decade for decade in range(first, math.ceil(math.log10(largest)) + 1)]
    ticks = [sign * decade for decade in decades for sign in (-1, 1)]
    axes.xaxis.set_major_locator(FixedLocator(sorted([0.0, *(t for t in ticks if low <= t <= high)])))
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    axes.xaxis.set_minor_locator(NullLocator())
