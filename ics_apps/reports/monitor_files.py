"""Reads the monitor's Parquet files into one table with every column the page shows; damaged files are left out.

Histograms are wide, so they are read apart, for the few layers that are drawn.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY: Final = ["layer", "tag", "call"]  # one row of a map: a layer under a tag, and which of its forwards

_FLOATS: Final = (
    "rms",
    "q15",
    "q50",
    "q85",
    "zero_fraction",
    "saturated_fraction",
    "drift_kl",
    "drift_w1",
    "reference_w1",
    "running_gap",
    "running_var_gap",
    "batch_noise",
    "weight_norm",
    "update_ratio",
    "effective_lr",
    "grad_rms",
)
_INTEGERS: Final = {
    "step": 0,
    "call": 0,
    "order": 0,
    "nonfinite_count": 0,
    "channels": 0,
    "dead_channels": -1,
}
_TEXTS: Final = ("layer", "tag", "kind", "type")
_HISTOGRAM: Final = ("hist_center", "hist_scale", "histogram")
_RANGE: Final = ("min", "max")
_CELLS: Final = 66  # below the edges, 64 bins, above the edges


def read_monitor(folder: Path, problems: list[str]) -> Any:
    """Read every Parquet file of the monitor; a sample that was written twice (a resumed run) keeps its later values.

    Args:
        folder: The monitor's folder; it may be missing or empty.
        problems: Sentences about files that could not be read are appended here.

    Returns:
        A pandas DataFrame sorted by step, forward order, tag and call, with a column `place`: the row of a (layer,
        tag, call) on a map, in forward order. None where there are no rows.
    """
    tables = _read_tables(folder, (*_TEXTS, *_INTEGERS, *_FLOATS), problems)
    if not tables:
        return None
    import numpy as np
    import pandas as pd

    rows = pd.concat([_complete(table) for table in tables], ignore_index=True)
    rows = rows.drop_duplicates(["step", *KEY], keep="last")
    rows = rows.sort_values(["step", "order", "tag", "call"], kind="stable", ignore_index=True)
    code = rows.groupby(KEY, sort=False).ngroup().to_numpy()
    first = np.unique(code, return_index=True)[1]
    forward = rows.loc[first, ["order", "tag", "call"]].reset_index(drop=True)
    place = np.empty(len(first), np.int64)
    place[forward.sort_values(["order", "tag", "call"], kind="stable").index] = np.arange(len(first))
    return rows.assign(place=place[code])


def read_histograms(folder: Path, layers: Collection[str]) -> Any:
    """Read the histograms of some layers.

    Args:
        folder: The monitor's folder.
        layers: Names as in the column `layer`.

    Returns:
        A pandas DataFrame by step with the columns step, layer, tag, call, hist_center, hist_scale, min, max and
        histogram (counts, an array of 66 a row); None where none was written.
    """
    columns = ("step", *KEY, *_HISTOGRAM, *_RANGE)
    tables = [t for t in _read_tables(folder, columns, [], layers) if set(_HISTOGRAM) <= set(t.columns)]
    if not tables:
        return None
    import numpy as np
    import pandas as pd

    complete = [
        t.assign(tag=_texts(t, "tag"), call=t.get("call", 0), **{name: _numbers(t, name) for name in _RANGE})
        for t in tables
    ]
    rows = pd.concat(complete, ignore_index=True).drop_duplicates(["step", *KEY], keep="last")
    rows = rows[[np.shape(counts) == (_CELLS,) for counts in rows["histogram"]]]
    return rows.sort_values("step", kind="stable", ignore_index=True) if len(rows) else None


def _read_tables(
    folder: Path, columns: tuple[str, ...], problems: list[str], layers: Collection[str] | None = None
) -> list[Any]:
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    if not files:
        return []
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        try:
            present = [name for name in pq.read_schema(file).names if name in columns]
            if not {"step", "layer"} <= set(present):
                problems.append(f"{folder.name}/{file.name} has no columns `step` and `layer`; it is left out.")
                continue
            chosen = None if layers is None else [("layer", "in", list(layers))]
            table = pd.read_parquet(file, columns=present, filters=chosen)
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{folder.name}/{file.name} could not be read ({_first_line(error)}); it is left out.")
            continue
        if len(table):
            tables.append(table)
    return tables


def _complete(table: Any) -> Any:
    """Give a monitor table every column of the contract, with one type each, so that tables join without surprises."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {name: _texts(table, name) for name in _TEXTS}
    for name in _FLOATS:
        columns[name] = _numbers(table, name).astype(np.float64)
    for name, default in _INTEGERS.items():
        numbers = _numbers(table, name)
        columns[name] = np.where(np.isfinite(numbers), numbers, default).astype(np.int64)
    return pd.DataFrame(columns)


def _texts(table: Any, name: str) -> NDArray[np.object_]:
    import numpy as np

    given = table[name].astype(object).to_numpy() if name in table else [""] * len(table)
    return np.array(["" if value is None else str(value) for value in given], dtype=object)


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
