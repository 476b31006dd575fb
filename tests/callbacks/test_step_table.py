"""A table by steps: what is added is there, what a resumed run writes again is dropped, damage is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.callbacks.step_table import StepTable


@pytest.fixture
def table(tmp_path: Path) -> StepTable:
    return StepTable(tmp_path / "probes" / "ics.csv", ("step", "layer", "cosine"))


def test_rows_come_back_in_the_order_in_which_they_were_added(table: StepTable) -> None:
    table.add([{"step": 0, "layer": "a", "cosine": 0.5}])
    table.add([{"step": 5, "layer": "a,b", "cosine": 1.0}, {"step": 5, "layer": "ü\n", "cosine": -1.0}])
    rows = [(row["step"], row["layer"], row["cosine"]) for row in table.read()]
    assert rows == [("0", "a", "0.5"), ("5", "a,b", "1.0"), ("5", "ü\n", "-1.0")]


def test_the_header_is_written_once(table: StepTable) -> None:
    table.drop_from(0)
    for step in range(3):
        table.add([{"step": step, "layer": "a", "cosine": 0.5}])
    assert table.path.read_text().splitlines() == ["step,layer,cosine", "0,a,0.5", "1,a,0.5", "2,a,0.5"]


def test_a_missing_column_is_empty_and_an_unknown_one_is_not_written(table: StepTable) -> None:
    table.add([{"step": 0, "layer": "a", "other": 3}])
    assert table.read() == [{"step": "0", "layer": "a", "cosine": ""}]


def test_no_rows_make_no_file(table: StepTable) -> None:
    table.add([])
    assert not table.path.exists()
    assert table.read() == []


@pytest.mark.parametrize(("step", "kept"), [(0, []), (5, ["0"]), (6, ["0", "5", "5"]), (99, ["0", "5", "5", "10"])])
def test_a_resumed_run_keeps_the_rows_before_its_step(table: StepTable, step: int, kept: list[str]) -> None:
    table.add([{"step": step, "layer": "a", "cosine": 0.5} for step in (0, 5, 5, 10)])
    assert [row["step"] for row in table.drop_from(step)] == kept
    assert [row["step"] for row in table.read()] == kept


def test_damaged_lines_are_left_out_and_swept_up(table: StepTable) -> None:
    table.add([{"step": step, "layer": "a", "cosine": 0.5} for step in (0, 1)])
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + b"2,a\nx,a,0.5\n-3,a,0.5\n,a,0.5\n3,\xff")
    assert [row["step"] for row in table.read()] == ["0", "1"]
    table.drop_from(9)
    assert table.path.read_bytes() == whole


def test_a_file_with_other_columns_is_begun_anew(table: StepTable) -> None:
    StepTable(table.path, ("step", "figure")).add([{"step": 0, "figure": 1.0}])
    assert table.drop_from(9) == []
    assert table.path.read_text() == "step,layer,cosine\n"


def test_nothing_but_the_table_is_left_in_the_folder(table: StepTable) -> None:
    table.add([{"step": 0, "layer": "a", "cosine": 0.5}])
    table.drop_from(0)
    assert [file.name for file in table.path.parent.iterdir()] == ["ics.csv"]
