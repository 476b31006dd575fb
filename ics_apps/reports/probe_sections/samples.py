"""The sections about samples that see each other: which modules mix them, and what a batch's company does to one."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ics_apps.reports.parts import Section, Table, as_figures
from ics_apps.reports.probe_sections.charts import Chart, band, draw_chart, line, value_axis
from ics_apps.reports.svg import COLOURS
from ics_apps.reports.wording import count, number, percent, printable

TABLE_ROWS: Final = 20

_COMPOSITION: Final = Chart(
    "probe-composition",
    "One real sample among fakes",
    "logit of the real sample",
    x_label="share of fakes in the batch (0 to 1)",
    wide=True,
)
_RATIO: Final = (
    "Ratio: size of the gradient of a module's output for one sample with respect to its input of another sample, over "
    "that with respect to its input of the same sample (mean over the others); 0 where samples are apart."
)
_APART: Final = "No sample's output depends on another's"


def leakage_section(table: Any) -> Section:
    """Build the section about modules that mix samples, as they did at the last measurement."""
    step = int(table["step"].iloc[-1])
    rows = table[(table["step"].to_numpy() == step) & ~np.isnan(table["ratio"].to_numpy())].sort_values("place")
    if rows.empty:
        missing = "No module's mixing was measured: probes/leakage.csv holds no ratio."
        return Section("leakage", "Leakage between samples", missing=missing)
    mixing = rows[rows["ratio"].to_numpy() > 0]
    if mixing.empty:
        note = f"{_APART}: at step {step} the ratio was 0 in {count(len(rows), 'module')}."
        return Section("leakage", "Leakage between samples", note=note)
    return Section(
        "leakage", "Leakage between samples", note=_mixing_reading(mixing, step), tables=(_mixing_table(mixing),)
    )


def composition_section(table: Any) -> Section:
    """Build the section about the logit of a real sample among fakes, at the first and the last measurement."""
    rows = table[np.isfinite(table["share"].to_numpy()) & np.isfinite(table["mean"].to_numpy())]
    if rows.empty:
        missing = "No logit was measured: probes/batch_composition.csv holds no finite one."
        return Section("composition", "Composition of the batch", missing=missing)
    steps = list(dict.fromkeys((int(rows["step"].iloc[0]), int(rows["step"].iloc[-1]))))
    curves = {step: rows[rows["step"].to_numpy() == step].sort_values("share") for step in steps}

    def paint(axes: Any) -> None:
        drawn = []
        for (step, curve), colour in zip(curves.items(), COLOURS, strict=False):
            share, mean = curve["share"].to_numpy(), curve["mean"].to_numpy()
            spread = np.nan_to_num(curve["std"].to_numpy(), posinf=0.0, neginf=0.0)
            band(axes, share, (mean - spread, mean + spread), "", colour)
            line(axes, share, mean, f"step {step}", colour, marker="o", markersize=3)
            drawn += [mean - spread, mean + spread]
        value_axis(axes, drawn, log=False)

    caption = (
        f"{_composition_reading(steps[-1], curves[steps[-1]])} Line: mean over batches that hold the same real sample; "
        "band: one standard deviation over them. A net that looks at each sample alone draws a flat line."
    )
    figures = as_figures(draw_chart(_COMPOSITION, paint, caption))
    return Section("composition", "Composition of the batch", figures=figures)


def _mixing_reading(mixing: Any, step: int) -> str:
    first = mixing.iloc[0]
    forbidden = int((~mixing["allowed"].to_numpy(dtype=bool)).sum())
    judged = f"{forbidden} of them not allowed" if forbidden else "all of them allowed"
    return (
        f"At step {step} samples saw each other from {printable(first['layer'])} on, in which each other sample of the "
        f"batch had {_share(float(first['ratio']))} of a sample's own influence on its output. "
        f"{count(len(mixing), 'module')} mixed samples, {judged}. {_RATIO}"
    )


def _mixing_table(mixing: Any) -> Table:
    """Show the modules that mix samples, those that are not allowed to first."""
    order = np.argsort(mixing["allowed"].to_numpy(dtype=bool), kind="stable")[:TABLE_ROWS]
    rows = tuple(
        (printable(row["layer"]), number(row["ratio"]), "allowed" if row["allowed"] else "not allowed")
        for _, row in mixing.iloc[order].iterrows()
    )
    marked = frozenset((place, 2) for place, row in enumerate(rows) if row[2] == "not allowed")
    caption = f"{len(rows)} of {len(mixing)} modules." if len(rows) < len(mixing) else ""
    return Table(("module", "ratio", "allowed"), rows, caption=caption, best=marked)


def _composition_reading(step: int, curve: Any) -> str:
    first, last = curve.iloc[0], curve.iloc[-1]
    if len(curve) < 2:
        return f"At step {step} the logit was {number(last['mean'])} at a share of {percent(last['share'])} fakes."
    if float(curve["mean"].max()) == float(curve["mean"].min()):
        return f"{_APART}: at step {step} the logit was {number(last['mean'])} whatever share of the batch was fake."
    spread = f", spread {number(last['std'])}" if np.isfinite(last["std"]) else ""
    many = f" over {int(last['count'])} batches" if np.isfinite(last["count"]) else ""
    return (
        f"At step {step} the logit of the same real sample went from {number(first['mean'])} among "
        f"{percent(first['share'])} fakes to {number(last['mean'])} among {percent(last['share'])}{spread}{many}."
    )


def _share(ratio: float) -> str:
    return percent(ratio) if ratio < 1 else f"{number(ratio)} times"
