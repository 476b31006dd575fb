"""Reads the tables that the probes wrote, `<run>/probes/<table>.csv`; draws and says nothing.

A table may be missing, cut off, damaged or of another version: what can be read is kept, and what cannot is named in
`problems`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ics_apps.reports.metric_files import read_rows, to_float, to_integer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Contract:
    """What a table holds.

    Attributes:
        columns: Its columns without `step`.
        key: Column that tells the rows of one step apart; "" where a step has one row.
    """

    columns: tuple[str, ...]
    key: str = ""


TABLES: Final[Mapping[str, Contract]] = {
    "ics": Contract(("layer", "order", "grad_norm", "shift", "relative_shift", "cosine"), "layer"),
    "input_drift": Contract(
        (
            "layer", "order", "mean", "std", "q15", "q50", "q85", "drift_kl", "drift_w1", "drift_mean",
            "reference_kl", "reference_w1", "reference_mean",
        ),
        "layer",
    ),
    "landscape": Contract(("lr_multiple", "step_size", "loss", "gradient_change", "smoothness"), "lr_multiple"),
    "hessian": Contract(
        (
            "lambda_max", "lambda_max_bound", "lambda_min", "lambda_min_bound", "lambda_min_converged", "lambda_ratio",
            "trace", "trace_error", "negative_mass", "effective_rank", "damped_condition", "damping", "products",
            "sharpness_limit",
        )
    ),
    "spectral_density": Contract(("eigenvalue", "density"), "eigenvalue"),
    "conditioning": Contract(("layer", "order", "features", "condition", "effective_rank", "damping"), "layer"),
    "leakage": Contract(("module", "order", "ratio", "is_source", "allowed"), "module"),
    "batch_composition": Contract(("share", "mean", "std", "count"), "share"),
    "scale_invariance": Contract(
        ("layer", "norm", "effective_lr", "rotation", "expected_rotation", "weight_decay"), "layer"
    ),
    "gradient_flow": Contract(("layer", "order", "grad_norm", "snr"), "layer"),
}  # fmt: skip

_NAMES: Final = ("layer", "module")
_FLAGS: Final = ("lambda_min_converged", "is_source", "allowed")
_WHOLE: Final = "(model)"  # the model itself has no name inside itself
_HUGE: Final = 1e100
_NO: Final = ("", "0", "0.0", "false", "no", "none", "nan")


def read_probes(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """Read every table of the probes; a row that was written twice (a resumed run) counts once, as written last.

    Args:
        folder: The probes' folder; it may be missing or empty.
        problems: Sentences about what could not be read are appended here.

    Returns:
        By name, pandas DataFrames with `step` and every column of the contract (names as text, flags as bool, numbers
        as float64, NaN where a cell is empty), sorted by step. A table of layers or modules also has `place` (its row
        on a map, in forward order) and what `layer_grid` takes. Tables without a row are left out; None where the
        folder holds no table: nobody probed.
    """
    files = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if not files:
        return None
    unknown = [file.name for file in files if file.stem not in TABLES]
    if unknown:
        problems.append(f"{folder.name}/ also holds {', '.join(unknown)}, of which the page draws nothing.")
    tables = {file.stem: _read_table(file, TABLES[file.stem], problems) for file in files if file.stem in TABLES}
    return {name: table for name, table in tables.items() if table is not None}


def _read_table(path: Path, contract: Contract, problems: list[str]) -> Any:
    name = f"{path.parent.name}/{path.name}"
    try:
        header, rows = read_rows(path, problems)
    except csv.Error as error:
        problems.append(f"{name} could not be read ({error}); it is left out.")
        return None
    if not header:
        return None
    missing = [column for column in contract.columns if column not in header]
    foreign = [column for column in header if column not in (*contract.columns, "step")]
    if contract.key in missing:
        problems.append(f"{name} has no column `{contract.key}`; it is left out.")
        return None
    if missing:
        problems.append(f"{name} has no column {_list(missing)}; what is drawn of it is left out.")
    if foreign:
        problems.append(f"{name} holds a column that is not known, {_list(foreign)}; it is left out.")
    return _frame(name, header, rows, contract, problems)


def _frame(name: str, header: list[str], rows: list[list[str]], contract: Contract, problems: list[str]) -> Any:
    kept: dict[tuple[int, str], dict[str, Any]] = {}
    unreadable = 0
    for row in rows:
        cells = dict(zip(header, row, strict=False))
        step = to_integer(cells.get("step", "")) if len(row) == len(header) else None
        key = cells.get(contract.key, "")
        if step is None or (contract.key not in ("", *_NAMES) and to_float(key) is None):
            unreadable += 1
            continue
        values = {column: _value(column, cells.get(column, "")) for column in contract.columns}
        unreadable += sum(value is None for value in values.values())
        kept.pop((step, key), None)  # what was written last also stands last
        kept[step, key] = {"step": step, **values}
    if unreadable:
        problems.append(f"{unreadable} lines or cells of {name} could not be read and are left out.")
    if not kept:
        return None
    import pandas as pd

    table = pd.DataFrame(list(kept.values()))
    numbers = [column for column in contract.columns if column not in (*_NAMES, *_FLAGS)]
    table = table.astype(dict.fromkeys(numbers, "float64"))  # None becomes NaN
    table = table.sort_values("step", kind="stable", ignore_index=True)
    return _placed(table, contract.key) if contract.key in _NAMES else table


def _value(column: str, cell: str) -> Any:
    """Read a cell; NaN where it is empty, None where it cannot be read."""
    if column in _NAMES:
        return cell or _WHOLE
    if column in _FLAGS:
        return cell.strip().lower() not in _NO
    return _drawable(to_float(cell)) if cell.strip() else float("nan")


def _drawable(value: float | None) -> float | None:
    """Give what overflows on an axis as infinite, and what underflows as 0."""
    if value is None or math.isnan(value):
        return value
    if abs(value) > _HUGE:
        return math.copysign(math.inf, value)
    return value if abs(value) >= 1 / _HUGE else 0.0


def _placed(table: Any, key: str) -> Any:
    """Add the columns that a grid of layers by steps is made from; a layer without an order stands where it is met."""
    import numpy as np

    code = table.groupby(key, sort=False).ngroup().to_numpy()
    last = len(code) - 1 - np.unique(code[::-1], return_index=True)[1]
    given = table["order"].to_numpy()[last] if "order" in table else np.full(len(last), np.nan)
    place: NDArray[np.int64] = np.empty(len(last), np.int64)
    place[np.argsort(np.where(np.isfinite(given), given, np.inf), kind="stable")] = np.arange(len(last))
    return table.assign(layer=table[key], place=place[code], tag="", call=0, kind="")


def _list(columns: list[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns)
