"""Reads the monitor's Parquet files into one table with every column of the contract; damaged files are left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOATS: Final = (
    "mean",
    "std",
    "rms",
    "min",
    "max",
    "q15",
    "q50",
    "q85",
    "zero_fraction",
    "saturated_fraction",
    "drift_kl",
    "drift_w1",
    "running_gap",
)
_INTEGERS: Final = {
    "step": 0,
    "epoch": 0,
    "call": 0,
    "order": 0,
    "count": 0,
    "nonfinite_count": 0,
    "channels": 0,
    "dead_channels": -1,
}
_TEXTS: Final = ("layer", "kind", "type")


def read_monitor(folder: Path, problems: list[str]) -> Any:
    """Read every Parquet file of the monitor; a sample that was written twice (a resumed run) keeps its later values.

    Args:
        folder: The monitor's folder; it may be missing or empty.
        problems: Sentences about files that could not be read are appended here.

    Returns:
        A pandas DataFrame sorted by step, forward order and call; None where there are no rows.
    """
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    if not files:
        return None
    import pandas as pd
    import pyarrow as pa

    tables = []
    for file in files:
        try:
            table = pd.read_parquet(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{folder.name}/{file.name} could not be read ({_first_line(error)}); it is left out.")
            continue
        if not {"step", "layer"} <= set(table.columns):
            problems.append(f"{folder.name}/{file.name} has no columns `step` and `layer`; it is left out.")
            continue
        if len(table):
            tables.append(_complete(table))
    if not tables:
        return None
    rows = pd.concat(tables, ignore_index=True).drop_duplicates(["step", "layer", "call"], keep="last")
    return rows.sort_values(["step", "order", "call"], kind="stable", ignore_index=True)


def _complete(table: Any) -> Any:
    """Give a monitor table every column of the contract, with one type each, so that tables join without surprises."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in _TEXTS:
        given = table[name].astype(object).to_numpy() if name in table else [""] * len(table)
        columns[name] = np.array(["" if value is None else str(value) for value in given], dtype=object)
    for name in _FLOATS:
        columns[name] = _numbers(table, name).astype(np.float64)
    for name, default in _INTEGERS.items():
        numbers = _numbers(table, name)
        columns[name] = np.where(np.isfinite(numbers), numbers, default).astype(np.int64)
    return pd.DataFrame(columns)


def _numbers(table: Any, name: str) -> NDArray[np.float64]:
    import numpy as np
    import pandas as pd

    if name not in table:
        return np.full(len(table), np.nan)
    numbers: NDArray[np.float64] = pd.to_numeric(table[name], errors="coerce").to_numpy(
        dtype=np.float64, na_value=np.nan
    )
    return numbers


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
