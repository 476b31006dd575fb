"""The monitor's files are always whole."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ics_apps.callbacks.monitor_parts import SAMPLES_PER_PART, MonitorParts
from ics_apps.probes.recorder import COLUMNS, Table


def sample(*layers: str) -> Table:
    table = {name: np.zeros(len(layers), dtype) for name, dtype in COLUMNS.items()}
    table["layer"] = np.array(layers, object)
    table["kind"] = table["type"] = np.array(["norm"] * len(layers), object)
    return table


def steps(folder: Path) -> list[int]:
    return sorted(pd.read_parquet(folder)["step"].tolist())


def write(folder: Path, *at: int) -> MonitorParts:
    parts = MonitorParts(folder)
    for step in at:
        parts.add(step, 0, sample("a"))
    parts.flush()
    return parts


def test_one_line_of_pandas_reads_the_folder(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path / "monitor")
    parts.add(20, 1, sample("a", "b"))
    parts.flush()
    frame = pd.read_parquet(tmp_path / "monitor")
    assert list(frame.columns) == ["step", "epoch", *COLUMNS]
    assert frame[["step", "epoch", "layer"]].to_numpy().tolist() == [[20, 1, "a"], [20, 1, "b"]]
    assert {"step": "int64", "epoch": "int32", "call": "int16", "mean": "float32"}.items() <= {
        name: str(dtype) for name, dtype in frame.dtypes.items()
    }.items()


def test_a_part_grows_until_it_is_full_and_then_the_next_begins(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    for step in range(SAMPLES_PER_PART + 2):
        parts.add(step, 0, sample("a"))
        parts.flush()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["part-000000000.parquet", "part-000000032.parquet"]
    assert steps(tmp_path) == list(range(SAMPLES_PER_PART + 2))


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    parts = write(tmp_path / "monitor", 0)
    part = next((tmp_path / "monitor").iterdir())
    part.unlink()
    parts.flush()
    assert not part.exists()


def test_a_sample_without_rows_leaves_no_folder(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path / "monitor")
    parts.add(0, 0, sample())
    parts.flush()
    assert not (tmp_path / "monitor").exists()


@pytest.mark.parametrize(("step", "left", "dropped"), [(25, [0, 10, 20], 3), (30, [0, 10, 20], 3), (5, [0], 5)])
def test_rows_of_a_later_step_are_dropped_and_earlier_ones_stay(
    tmp_path: Path, step: int, left: list[int], dropped: int
) -> None:
    write(tmp_path, 0, 10, 20, 30)
    write(tmp_path, 40, 50)
    assert MonitorParts(tmp_path).drop_from(step) == dropped
    assert steps(tmp_path) == left


def test_a_start_from_step_zero_drops_everything(tmp_path: Path) -> None:
    write(tmp_path, 0, 10)
    assert MonitorParts(tmp_path).drop_from(0) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_set_aside_and_named(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / "part-000000000.parquet").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match=r"part-000000000\.parquet cannot be read .* set aside"):
        MonitorParts(tmp_path).drop_from(100)
    assert steps(tmp_path) == [10]
    assert (tmp_path / "_unreadable-part-000000000.parquet").read_bytes() == b"half a file"


def test_an_interrupted_write_leaves_the_old_part_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write(tmp_path, 0)

    def killed(table: object, file: IO[bytes]) -> None:
        file.write(b"PAR1 and then")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    parts.add(10, 0, sample("a"))
    with pytest.raises(KeyboardInterrupt):
        parts.flush()
    assert steps(tmp_path) == [0]
    monkeypatch.undo()
    assert MonitorParts(tmp_path).drop_from(100) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["part-000000000.parquet"]
