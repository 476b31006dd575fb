from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.runs.metrics import MetricsLogger, read_rows


def test_nothing_is_written_before_the_first_row(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run")
    logger.rewind(0)
    assert not (tmp_path / "run").exists()


def test_a_new_metric_becomes_a_column_and_old_rows_stay(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    logger.log_metrics({"train/loss": 0.5}, step=0)
    logger.log_metrics({"val/dice": 0.25, "epoch": 0}, step=0)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table) == ["step", "epoch", "train/loss", "val/dice"]
    assert table["train/loss"].tolist()[0] == 0.5
    assert table["val/dice"].tolist()[1] == 0.25


def test_a_second_logger_in_the_same_directory_appends(tmp_path: Path) -> None:
    MetricsLogger(tmp_path).log_metrics({"train/loss": 0.5}, step=0)
    MetricsLogger(tmp_path).log_metrics({"train/loss": 0.25}, step=1)
    assert pd.read_csv(tmp_path / "metrics.csv")["train/loss"].tolist() == [0.5, 0.25]


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6), cut=st.integers(0, 7))
def test_rewinding_keeps_exactly_the_rows_before_the_step(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    logger = MetricsLogger(folder)
    for step, value in enumerate(values):
        logger.log_metrics({"train/loss": value}, step=step)
    logger.rewind(cut)
    assert [float(row["train/loss"]) for row in read_rows(folder / "metrics.csv")] == values[:cut]
    logger.log_metrics({"train/loss": 1.0}, step=cut)
    assert len(read_rows(folder / "metrics.csv")) == min(cut, len(values)) + 1


def test_half_a_row_of_a_killed_process_is_dropped_on_rewind(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    logger.log_metrics({"train/loss": 0.5}, step=0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0,0.2")
    MetricsLogger(tmp_path).rewind(5)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,train/loss\n0,,0.5\n"


def test_names_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    MetricsLogger(tmp_path).log_metrics({'val/dice/a,"b"': 1.0}, step=0)
    assert list(pd.read_csv(tmp_path / "metrics.csv")) == ["step", "epoch", 'val/dice/a,"b"']
