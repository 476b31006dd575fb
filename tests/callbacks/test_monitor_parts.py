"""The monitor's files are always whole, and bounded however long the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ics_apps.callbacks import monitor_parts
from ics_apps.callbacks.monitor_parts import FOLDER, PART, WAITING, Limit, MonitorParts
from ics_apps.probes.activations.columns import BINS, COLUMNS, HISTOGRAM, Table

MANY = 10**6


def sample(*layers: str) -> Table:
    table = {name: np.zeros(len(layers), dtype) for name, dtype in COLUMNS.items() if dtype != "object"}
    table |= {name: np.array([name] * len(layers), object) for name, dtype in COLUMNS.items() if dtype == "object"}
    table["layer"] = np.array(layers, object)
    table[HISTOGRAM] = np.zeros((len(layers), BINS + 2), np.uint16)
    return table


def steps(folder: Path) -> list[int]:
    found: list[int] = pd.read_parquet(folder, columns=["step"])["step"].tolist()
    return sorted(found)


def parts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(parts: MonitorParts, at: list[int] | range, *layers: str) -> None:
    table = sample(*(layers or ("a",)))
    for step in at:
        parts.add(step, 0, table)
    parts.flush()


def opened(folder: Path, step: int = MANY) -> MonitorParts:
    parts = MonitorParts(folder)
    parts.drop_from(step)
    return parts


def limit(monkeypatch: pytest.MonkeyPatch, waiting: int, part: int, folder: int, rows: int = MANY) -> None:
    for name, value in (("WAITING", waiting), ("PART", part), ("FOLDER", folder)):
        monkeypatch.setattr(monitor_parts, name, Limit(value, rows))


def test_one_line_of_pandas_reads_the_folder(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path / "monitor")
    table = sample("a", "b")
    table[HISTOGRAM][1] = np.arange(66)
    table["mean"][:] = 0.5, np.nan
    parts.add(20, 1, table)
    parts.flush()
    (tmp_path / "monitor" / "_alarms.csv").write_text("step,epoch\n")
    frame = pd.read_parquet(tmp_path / "monitor")
    assert list(frame.columns) == ["step", "epoch", *COLUMNS]
    assert frame[["step", "epoch", "layer", "tag"]].to_numpy().tolist() == [[20, 1, "a", "tag"], [20, 1, "b", "tag"]]
    assert frame["mean"][0] == 0.5
    assert np.isnan(frame["mean"][1])
    assert {name: str(frame[name].dtype) for name in ("step", "epoch", "call", "count", "mean")} == {
        "step": "int64",
        "epoch": "int32",
        "call": "int16",
        "count": "int64",
        "mean": "float32",
    }


def test_pandas_gives_one_array_of_counts_a_row(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    table = sample("a", "b")
    table[HISTOGRAM][1] = np.arange(66)
    parts.add(0, 0, table)
    parts.flush()
    column = pd.read_parquet(tmp_path)[HISTOGRAM]
    assert [(row.shape, row.dtype) for row in column] == [((66,), np.dtype(np.uint16))] * 2
    np.testing.assert_array_equal(np.stack(column.tolist()), table[HISTOGRAM])


def test_a_full_part_of_realistic_figures_takes_at_most_200_bytes_a_row(tmp_path: Path) -> None:
    rng, layers = np.random.default_rng(0), [f"net.layer{i // 8}.{i % 8}.conv" for i in range(64)]
    edges = np.sinh(np.linspace(-np.arcsinh(1000), np.arcsinh(1000), BINS + 1))
    parts = MonitorParts(tmp_path)
    for turn in range(PART.samples):
        table = sample(*layers)
        for name, dtype in COLUMNS.items():
            if dtype == "float32":
                table[name] = rng.normal(size=64).astype(np.float32)
        for row in range(64):
            values = rng.normal(rng.normal(), np.exp(rng.normal()), 2048)
            table[HISTOGRAM][row] = np.bincount(np.searchsorted(edges, values), minlength=BINS + 2)
        parts.add(20 * turn, turn // 4, table)
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size <= 200 * 64 * PART.samples


def test_a_part_grows_until_it_is_full_and_then_the_next_begins(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    for step in range(PART.samples + 2):
        write(parts, [step])
    assert parts_of(tmp_path) == ["part-000000000.parquet", "part-000000032.parquet"]
    assert steps(tmp_path) == list(range(PART.samples + 2))


def test_at_most_eight_samples_wait_in_memory(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    for step in range(2 * WAITING.samples + 1):
        parts.add(step, 0, sample("a"))
    assert steps(tmp_path) == list(range(2 * WAITING.samples))


def test_a_sample_of_very_many_rows_does_not_wait(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    parts.add(0, 0, sample(*["a"] * WAITING.rows))
    assert len(steps(tmp_path)) == WAITING.rows


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    write(parts, [0])
    part = next(tmp_path.iterdir())
    part.unlink()
    parts.flush()
    assert not part.exists()


def test_a_part_that_someone_removed_does_not_end_the_training(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path)
    write(parts, [0])
    next(tmp_path.iterdir()).unlink()
    write(parts, [10])
    assert steps(tmp_path) == [10]


def test_a_sample_without_rows_leaves_no_folder(tmp_path: Path) -> None:
    parts = MonitorParts(tmp_path / "monitor")
    parts.add(0, 0, {name: column[:0] for name, column in sample("a").items()})
    parts.flush()
    assert not (tmp_path / "monitor").exists()


@pytest.mark.parametrize(("step", "left", "dropped"), [(25, [0, 10, 20], 3), (30, [0, 10, 20], 3), (5, [0], 5)])
def test_rows_of_a_later_step_are_dropped_and_earlier_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, left: list[int], dropped: int
) -> None:
    monkeypatch.setattr(monitor_parts, "PART", Limit(4, MANY))
    write(MonitorParts(tmp_path), [0, 10, 20, 30])
    write(opened(tmp_path), [40, 50])
    assert len(parts_of(tmp_path)) == 2
    assert MonitorParts(tmp_path).drop_from(step) == dropped
    assert steps(tmp_path) == left


def test_a_start_from_step_zero_drops_everything(tmp_path: Path) -> None:
    write(MonitorParts(tmp_path), [0, 10])
    assert MonitorParts(tmp_path).drop_from(0) == 2
    assert parts_of(tmp_path) == []


def test_a_resumed_run_goes_on_with_the_open_part(tmp_path: Path) -> None:
    for step in range(5):
        write(opened(tmp_path), [step])
    assert parts_of(tmp_path) == ["part-000000000.parquet"]
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_a_file_that_cannot_be_read_is_set_aside_and_named(tmp_path: Path) -> None:
    write(MonitorParts(tmp_path), range(0, 330, 10))
    (tmp_path / "part-000000000.parquet").write_bytes(b"half a file")
    with pytest.warns(UserWarning, match=r"part-000000000\.parquet cannot be read .* set aside"):
        opened(tmp_path)
    assert steps(tmp_path) == [320]
    assert (tmp_path / "_unreadable-part-000000000.parquet").read_bytes() == b"half a file"


def test_a_part_of_an_older_version_gets_the_new_columns(tmp_path: Path) -> None:
    old = {"step": [0], "epoch": np.zeros(1, np.int32), "layer": ["a"], "call": np.zeros(1, np.int16), "mean": [0.5]}
    pq.write_table(pa.table(old), tmp_path / "part-000000000.parquet")
    write(opened(tmp_path), [10])
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == ["step", "epoch", *COLUMNS]
    assert frame[["step", "layer", "tag", "mean"]].to_numpy().tolist() == [[0, "a", "", 0.5], [10, "a", "tag", 0.0]]
    assert frame["skewness"].isna().tolist() == [True, False]


def test_an_interrupted_write_leaves_the_old_part_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = MonitorParts(tmp_path)
    write(parts, [0])

    def killed(table: object, file: IO[bytes], **_: object) -> None:
        file.write(b"PAR1 and then")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    parts.add(10, 0, sample("a"))
    with pytest.raises(KeyboardInterrupt):
        parts.flush()
    assert steps(tmp_path) == [0]
    monkeypatch.undo()
    assert MonitorParts(tmp_path).drop_from(100) == 0
    assert parts_of(tmp_path) == ["part-000000000.parquet"]


def test_a_full_folder_keeps_every_second_sample_and_from_then_on_writes_every_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, waiting=1, part=4, folder=16)
    parts = opened(tmp_path)
    write(parts, range(0, 150, 10))
    assert steps(tmp_path) == list(range(0, 150, 10))
    write(parts, range(150, 250, 10))
    assert steps(tmp_path) == list(range(0, 250, 20))
    write(parts, range(250, 10_000, 10))
    assert steps(tmp_path) == list(range(0, 10_000, 1280))  # 10 * 2**7: the least that leaves fewer than 16


def test_thinning_joins_small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, waiting=1, part=4, folder=16)
    write(opened(tmp_path), range(0, 160, 10))
    assert parts_of(tmp_path) == ["part-000000000.parquet", "part-000000080.parquet"]


def test_many_rows_a_sample_thin_the_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_parts, "FOLDER", Limit(1024, 40))
    write(opened(tmp_path), range(0, 200, 10), "a", "b", "c", "d")
    assert len(steps(tmp_path)) < 40
    assert steps(tmp_path)[::4] == list(range(0, 200, 40))


def test_a_million_steps_keep_512_to_1024_samples_evenly_in_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    parts, table = opened(tmp_path), sample("a", "b")
    for step in range(0, 1_000_000, 20):
        parts.add(step, 0, table)
    parts.flush()
    assert steps(tmp_path)[::2] == list(range(0, 1_000_000, 1280))  # 782 samples
    assert steps(tmp_path)[1::2] == steps(tmp_path)[::2]
    assert len(parts_of(tmp_path)) <= FOLDER.samples / PART.samples + 2


@settings(max_examples=15, deadline=None)
@given(legs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 300)), min_size=1, max_size=5))
def test_a_run_resumed_with_other_intervals_stays_bounded_and_keeps_its_first_step(
    tmp_path_factory: pytest.TempPathFactory, legs: list[tuple[int, int, int]]
) -> None:
    folder, now, furthest = tmp_path_factory.mktemp("monitor"), 0, 0
    with pytest.MonkeyPatch.context() as patch:
        limit(patch, waiting=2, part=4, folder=16)
        patch.setattr(os, "fsync", lambda descriptor: None)
        for every, samples, back in legs:
            now = max(0, now - back)
            parts = opened(folder, now)
            write(parts, range(now, now + samples * every, every))
            now += samples * every
            furthest = max(furthest, now)
            found = steps(folder)
            assert len(found) < 18  # those waiting come on top
            assert len(set(found)) == len(found)
            assert found[0] == 0
            # A folder of 16 keeps at least 5 when it is thinned: its slots are shorter than a quarter of the run.
            assert now - found[-1] <= furthest / 4 + every


class Killed(BaseException):
    """What ends a process for good."""


def die_at(monkeypatch: pytest.MonkeyPatch, call: int, *, done: bool) -> list[str]:
    """From the `call`-th change of the folder on nothing works any more; `done`: that one change still happened."""
    changes: list[str] = []

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(self: Path, *args: Any, **options: Any) -> Any:
            changes.append(self.name)
            if len(changes) < call:
                return real(self, *args, **options)
            if len(changes) == call and done:
                real(self, *args, **options)
            raise Killed

        return change

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    return changes


@pytest.mark.parametrize("done", [False, True])
def test_a_kill_at_any_point_of_thinning_loses_nothing_and_leaves_no_double_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    limit(monkeypatch, waiting=1, part=4, folder=16)
    everything, thinned = list(range(0, 160, 10)), list(range(0, 160, 20))
    points = 0
    for call in range(2, 100):  # the first change writes the sample that fills the folder
        folder = tmp_path / str(call)
        parts = opened(folder)
        write(parts, everything[:-1])
        with monkeypatch.context() as patch:
            changes = die_at(patch, call, done=done)
            try:
                write(parts, everything[-1:])
            except Killed:
                points += 1
        if len(changes) < call:
            break
        assert set(thinned) <= set(steps(folder)) <= set(everything)
        resumed = opened(folder, 160)
        assert steps(folder) == (everything if (call, done) == (2, False) else thinned)
        write(resumed, range(160, 1000, 10))
        assert steps(folder) == list(range(0, 1000, 80))
    assert points >= 6  # four parts, two of them joined and removed
    assert len(parts_of(folder)) == 2


def test_a_thinning_cut_short_is_not_lost_to_the_samples_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, waiting=1, part=4, folder=16)
    parts = opened(tmp_path)
    write(parts, range(0, 150, 10))
    with monkeypatch.context() as patch:
        die_at(patch, 4, done=False)
        with pytest.raises(Killed):
            write(parts, [150])
    write(parts, [160, 170, 180])
    opened(tmp_path)
    assert steps(tmp_path) == list(range(0, 190, 20))
