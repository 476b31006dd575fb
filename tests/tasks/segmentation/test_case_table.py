from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from ics_apps.tasks.segmentation.case_table import CaseTable, nanmean, resampled_counts, summarised

NAN = math.nan


def _table() -> CaseTable:
    dice = np.array([[0.5, 1.0], [0.7, NAN], [0.9, 0.0], [NAN, NAN]])
    return CaseTable(["a", "b", "c", "d"], ["x", "y"], {"dice": dice}, {"ece": np.array([0.1, 0.2, NAN, 0.3])})


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_means_run_over_cases_then_over_classes() -> None:
    summary = _table().summary()
    assert summary["dice/x"].mean == pytest.approx(0.7)
    assert summary["dice/y"].mean == pytest.approx(0.5)
    assert summary["dice"].mean == pytest.approx(0.6)
    assert summary["ece"].mean == pytest.approx(0.2)


def test_the_spread_is_that_of_the_cases_that_were_counted() -> None:
    one = _table().summary()["dice"]
    assert one.cases == 3
    assert one.sd == pytest.approx(np.std([0.75, 0.7, 0.45], ddof=1))


def test_whole_cases_are_drawn() -> None:
    draws = resampled_counts(7)
    assert (draws.sum(1) == 7).all()
    assert draws.mean(0) == pytest.approx(np.ones(7), abs=0.1)


def test_the_interval_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    scores = np.random.default_rng(0).random((12, 1))
    first, again, other = (summarised(scores, resampled_counts(12, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    from scipy.stats import bootstrap

    scores = np.random.default_rng(0).beta(8, 2, 40)
    expected = bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    found = summarised(scores[:, None], resampled_counts(40))
    width = expected.confidence_interval.high - expected.confidence_interval.low
    # Quantiles of 2000 draws: standard error 2 % of the width at the ends, three of them.
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.06 * width)


def test_a_case_that_is_not_counted_does_not_move_the_mean_of_any_sample() -> None:
    scores = np.full((6, 2), 0.25)
    scores[2:, 1] = NAN
    assert summarised(scores, resampled_counts(6))[:4] == pytest.approx((0.25, 0.0, 0.25, 0.25))


@pytest.mark.parametrize("scores", [[[0.5]], [[0.5], [NAN]], [[0.5], [math.inf]]])
def test_one_case_or_an_infinite_score_has_no_interval(scores: list[list[float]]) -> None:
    found = summarised(np.array(scores), resampled_counts(len(scores)))
    assert np.isnan([found.sd, found.low, found.high]).all()


def test_nothing_counted_has_no_mean() -> None:
    found = summarised(np.full((3, 2), NAN), resampled_counts(3))
    assert math.isnan(found.mean)
    assert found.cases == 0
    assert math.isnan(float(nanmean(np.array([NAN]))))


def test_a_run_logs_means_of_classes_and_the_interval_of_what_belongs_to_all() -> None:
    assert set(_table().metrics()) == {
        "dice", "dice_sd", "dice_low", "dice_high", "dice/x", "dice/y", "ece", "ece_sd", "ece_low", "ece_high"
    }  # fmt: skip


def test_of_a_single_case_a_run_logs_means_only() -> None:
    table = CaseTable(["a"], ["x"], {"dice": np.array([[0.5]])}, {"ece": np.array([NAN])})
    assert table.metrics() == {"dice": 0.5, "dice/x": 0.5}


def test_the_file_of_cases_has_a_row_for_each_class_and_one_for_all(tmp_path: Path) -> None:
    _table().write_cases(tmp_path / "cases.csv")
    rows = _read(tmp_path / "cases.csv")
    assert [(row["case"], row["class"]) for row in rows[:3]] == [("a", "x"), ("a", "y"), ("a", "(all)")]
    assert rows[2] == {"case": "a", "class": "(all)", "dice": "0.75", "ece": "0.1"}
    assert rows[4] == {"case": "b", "class": "y", "dice": "", "ece": ""}
    assert len(rows) == 4 * 3


def test_the_file_of_the_summary_has_a_row_for_each_figure_and_class(tmp_path: Path) -> None:
    _table().write_summary(tmp_path / "summary.csv")
    rows = _read(tmp_path / "summary.csv")
    assert [(row["figure"], row["class"]) for row in rows] == [
        ("dice", "(all)"), ("dice", "x"), ("dice", "y"), ("ece", "(all)")
    ]  # fmt: skip
    assert (rows[0]["mean"], rows[0]["cases"]) == ("0.6", "3")
