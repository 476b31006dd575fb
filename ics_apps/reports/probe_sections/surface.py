"""The sections about the loss as a function of the weights: along its gradient, and its curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.probe_sections.charts import Chart, band, course, draw_chart, finite, line, value_axis
from ics_apps.reports.probe_sections.spectrum import density_chart
from ics_apps.reports.probe_sections.tables import NONE, damping_of, value_of
from ics_apps.reports.svg import COLOURS
from ics_apps.reports.wording import number, tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ics_apps.reports.svg import Drawing

TABLE_ROWS: Final = 10

_LOSS: Final = Chart("probe-landscape-loss", "Loss along the gradient", "loss", wide=True)
_CHANGE: Final = Chart(
    "probe-landscape-change", "Change of the gradient", "|g(w) \N{MINUS SIGN} g(w \N{MINUS SIGN} eg)|"
)
_SMOOTHNESS: Final = Chart("probe-landscape-smoothness", "Effective smoothness", "|change of g| / |step|")
_LARGEST: Final = Chart("probe-hessian-max", "Largest eigenvalue of the Hessian", "eigenvalue")
_SMALLEST: Final = Chart("probe-hessian-min", "Smallest eigenvalue of the Hessian", "eigenvalue")
_LIMIT: Final = "2 / learning rate"


def landscape_section(table: Any) -> Section:
    """Build the section about the loss along its gradient."""
    walked = table[table["step_size"].to_numpy() > 0]
    grid = _grid_of(walked)
    drawings = (_loss_chart(table, walked, grid), _change_chart(walked, grid), _smoothness_chart(walked, grid))
    figures = as_figures(*drawings)
    missing = "" if figures else "No step along the gradient was measured: probes/landscape.csv holds no finite figure."
    return Section("landscape", "Loss landscape", figures=figures, missing=missing)


def hessian_section(table: Any | None, density: Any | None) -> Section:
    """Build the section about curvature from the table of eigenvalues, and of the density; one of them may be None."""
    drawings: list[Drawing | None] = []
    tables: tuple[Table, ...] = ()
    if table is not None:
        drawings += [_largest_chart(table), _smallest_chart(table)]
        tables = (_hessian_table(table),)
    drawings.append(None if density is None else density_chart(density))
    figures = as_figures(*drawings)
    missing = "" if figures else "No eigenvalue was measured: probes/hessian.csv holds no finite one."
    return Section("hessian", "Hessian", figures=figures, tables=tables, missing=missing)


def _grid_of(walked: Any) -> str:
    """Spell the step sizes of the grid."""
    multiples = walked["lr_multiple"].to_numpy()
    multiples = multiples[np.isfinite(multiples)]
    if not len(multiples):
        return "the steps of the grid"
    low, high = tick(float(multiples.min())), tick(float(multiples.max()))
    return f"{low} learning rates" if low == high else f"{low} to {high} learning rates"


def _ends(walked: Any, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] | None:
    """The least and the most over the grid at each step; a grid with a value that is not finite has no finite end."""
    rows = walked[~np.isnan(walked[column].to_numpy())]
    if not np.isfinite(rows[column].to_numpy()).any():
        return None
    groups = rows.groupby("step")[column]
    least = groups.min()
    return least.index.to_numpy(), least.to_numpy(), groups.max().to_numpy()


def _loss_chart(table: Any, walked: Any, grid: str) -> Drawing | None:
    ends = _ends(walked, "loss")
    if ends is None:
        return None
    steps, low, high = ends
    start = table[(table["step_size"].to_numpy() == 0) & np.isfinite(table["loss"].to_numpy())]

    def paint(axes: Any) -> None:
        band(axes, steps, (low, high), f"least to most, {grid}")
        if len(start):
            line(axes, start["step"].to_numpy(), start["loss"].to_numpy(), "at the weights")
        value_axis(axes, (low, high, start["loss"].to_numpy()))

    last = start[start["step"].to_numpy() == steps[-1]]["loss"].tolist()
    at = f" from {number(last[0])}" if last else ""
    reading = (
        f"At step {steps[-1]} a step of {grid} against the gradient took the loss{at} to between "
        f"{number(low[-1])} and {number(high[-1])}."
    )
    caption = f"{reading} Same batch, weights put back afterwards; a narrow band is a smooth loss."
    return draw_chart(_LOSS, paint, caption, steps)


def _change_chart(walked: Any, grid: str) -> Drawing | None:
    ends = _ends(walked, "gradient_change")
    if ends is None:
        return None
    steps, low, high = ends

    def paint(axes: Any) -> None:
        band(axes, steps, (low, high), "least to most over the grid", COLOURS[1])
        value_axis(axes, (low, high))

    reading = f"At step {steps[-1]} the gradient changed by {number(low[-1])} to {number(high[-1])} (Euclidean)."
    caption = f"{reading} Distance between the gradient and that after {grid} along it."
    return draw_chart(_CHANGE, paint, caption, steps)


def _smoothness_chart(walked: Any, grid: str) -> Drawing | None:
    ends = _ends(walked, "smoothness")
    if ends is None:
        return None
    steps, _, most = ends

    def paint(axes: Any) -> None:
        line(axes, steps, most, "most over the grid", COLOURS[2])
        value_axis(axes, (most,), log=True)

    caption = (
        f"The effective smoothness was {course(steps, most)}: the most that the gradient changed for its way, over "
        f"{grid} (log axis). Less is smoother."
    )
    return draw_chart(_SMOOTHNESS, paint, caption, steps)


def _measured(table: Any, column: str) -> Any:
    return table[np.isfinite(table[column].to_numpy())]


def _largest_chart(table: Any) -> Drawing | None:
    rows = _measured(table, "lambda_max")
    if rows.empty:
        return None
    steps, value, bound = (rows[name].to_numpy() for name in ("step", "lambda_max", "lambda_max_bound"))
    bound, limit = finite(bound), finite(rows["sharpness_limit"].to_numpy())
    known = bool(np.isfinite(limit).any())

    def paint(axes: Any) -> None:
        band(axes, steps, (value - bound, value + bound), "within its error bound")
        line(axes, steps, value, "largest")
        if known:
            line(axes, steps, limit, _LIMIT, COLOURS[1], linestyle=(0, (4, 3)))
        value_axis(axes, (value, limit), log=bool((value > 0).all()))

    last = rows.iloc[-1]
    reading = f"At step {last['step']} the largest eigenvalue was {number(last['lambda_max'])}"
    if np.isfinite(last["lambda_max_bound"]):
        reading += f" \N{PLUS-MINUS SIGN} {number(last['lambda_max_bound'])}"
    caption = " The bound is that of an eigenvalue near it; no larger one was found."
    if np.isfinite(last["sharpness_limit"]) and last["sharpness_limit"] > 0:
        share = float(last["lambda_max"] / last["sharpness_limit"])
        reading += f", {number(share)} times {_LIMIT} = {number(last['sharpness_limit'])}"
        caption += (
            " Above the dashed line gradient descent on the whole data, without momentum, diverges; for other "
            "optimizers it is a scale to compare with."
        )
    return draw_chart(_LARGEST, paint, f"{reading}.{caption}", steps)


def _smallest_chart(table: Any) -> Drawing | None:
    rows = _measured(table, "lambda_min")
    if rows.empty:
        return None
    steps, value, bound = (rows[name].to_numpy() for name in ("step", "lambda_min", "lambda_min_bound"))
    bound, done = finite(bound), rows["lambda_min_converged"].to_numpy(dtype=bool)

    def paint(axes: Any) -> None:
        band(axes, steps, (value - bound, value + bound), "within its error bound", COLOURS[3])
        line(axes, steps, value, "", COLOURS[3], linewidth=0.8, marker="")
        for chosen, label, face in ((done, "converged", COLOURS[3]), (~done, "not converged", "white")):
            if chosen.any():
                axes.plot(
                    steps[chosen], value[chosen], linestyle="", marker="o", markersize=4, label=label,
                    markerfacecolor=face, markeredgecolor=COLOURS[3],
                )  # fmt: skip
        value_axis(axes, (value - bound, value + bound, value), log=False)

    last = rows.iloc[-1]
    state = "" if last["lambda_min_converged"] else ", which had not converged: the true one is at most that"
    caption = (
        f"At step {last['step']} the smallest eigenvalue was {number(last['lambda_min'])}{state}. Below 0 the loss "
        "curves downwards."
    )
    if len(done) > 1:
        caption += f" {int(done.sum())} of {len(done)} measurements had converged."
    return draw_chart(_SMALLEST, paint, caption, steps)


def _hessian_table(table: Any) -> Table:
    chosen = np.unique(np.linspace(0, len(table) - 1, TABLE_ROWS).astype(int))
    damping = damping_of(table)
    header = (
        "step", "largest", "largest / 5th", "smallest", "trace", "negative mass", "effective rank",
        f"condition ({damping})" if damping else "damped condition",
    )  # fmt: skip
    rows = tuple(
        (
            str(int(row["step"])),
            _with_error(row["lambda_max"], row["lambda_max_bound"]),
            value_of(row["lambda_ratio"]),
            _with_error(row["lambda_min"], row["lambda_min_bound"]),
            _with_error(row["trace"], row["trace_error"]),
            value_of(row["negative_mass"]),
            value_of(row["effective_rank"]),
            value_of(row["damped_condition"]),
        )
        for _, row in table.iloc[chosen].iterrows()
    )
    shown = f" {len(rows)} of {len(table)} measurements." if len(rows) < len(table) else ""
    caption = (
        "Eigenvalues with their error bounds; trace with its standard error; negative mass: share of eigenvalues "
        f"clearly below 0.{shown}"
    )
    return Table(header, rows, caption=caption)


def _with_error(value: float, error: float) -> str:
    if np.isnan(value):
        return NONE
    return number(value) if np.isnan(error) else f"{number(value)} \N{PLUS-MINUS SIGN} {number(error)}"
