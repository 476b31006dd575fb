from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.segmentation import dice_score

from ics_apps.tasks.segmentation.metrics import OverlapScores, case_counts, label_counts, overlap
from ics_apps.tasks.segmentation.targets import IGNORE

NAMES = ["background", "a", "b"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dice_equals_torchmetrics_per_case_where_the_class_is_present(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, truth = (torch.randint(0, 3, (3, 8, 8), generator=generator) for _ in range(2))
    scores = OverlapScores(NAMES)
    scores.update(predicted, truth)
    per_case = dice_score(
        predicted, truth, num_classes=3, include_background=False, average="none", input_format="index"
    )
    expected = per_case.nanmean(0).nanmean()
    assert float(scores.compute()["dice"]) == pytest.approx(float(expected), abs=1e-6)


def test_iou_is_dice_over_two_minus_dice_for_one_case() -> None:
    scores = OverlapScores(["background", "a"])
    scores.update(torch.tensor([[0, 1, 1, 0, 1]]), torch.tensor([[0, 1, 0, 1, 1]]))
    result = {name: float(value) for name, value in scores.compute().items()}
    assert result["iou"] == pytest.approx(result["dice"] / (2 - result["dice"]))
    assert result["dice/a"] == result["dice"]


def test_a_case_without_the_class_and_without_a_false_positive_is_not_counted() -> None:
    scores = OverlapScores(["background", "a"])
    scores.update(torch.tensor([[1, 1], [0, 0]]), torch.tensor([[1, 1], [0, 0]]))
    assert float(scores.compute()["dice"]) == 1.0


def test_a_false_positive_on_an_empty_truth_counts_zero() -> None:
    scores = OverlapScores(["background", "a"])
    scores.update(torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1, 1], [0, 0]]))
    assert float(scores.compute()["dice"]) == 0.5


def test_a_class_that_never_appears_is_nan_and_left_out_of_the_mean() -> None:
    scores = OverlapScores(NAMES)
    scores.update(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]))
    result = scores.compute()
    assert math.isnan(result["dice/b"])
    assert float(result["dice"]) == 1.0


def test_ignored_positions_are_in_no_count() -> None:
    truth, predicted = torch.tensor([[1, 0, IGNORE, IGNORE]]), torch.tensor([[1, 1, 1, 0]])
    assert case_counts(predicted, truth, 2)[0, 1].tolist() == [1, 1, 0]
    labels = truth.unsqueeze(1)
    assert label_counts(predicted.unsqueeze(1), labels)[0, 0].tolist() == [1, 1, 0]


def test_labels_that_exclude_each_other_score_as_the_classes_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, truth = (torch.randint(0, 3, (4, 6, 6), generator=generator) for _ in range(2))
    classes, labels = OverlapScores(NAMES), OverlapScores(NAMES[1:], multi_label=True)
    classes.update(predicted, truth)
    labels.update(*(torch.stack([mask == 1, mask == 2], 1) for mask in (predicted, truth)))
    assert classes.compute() == labels.compute()


def test_overlapping_labels_are_scored_each_by_itself() -> None:
    scores = OverlapScores(["a", "b"], multi_label=True)
    scores.update(torch.tensor([[[1, 1, 0], [1, 0, 0]]]), torch.tensor([[[1, 1, 0], [1, 1, 0]]]))
    result = {name: float(value) for name, value in scores.compute().items()}
    assert result["dice/a"] == 1.0
    assert result["dice/b"] == pytest.approx(2 / 3)


def test_overlap_leaves_the_background_out() -> None:
    dice, iou = overlap(torch.tensor([[[9, 9, 9], [1, 1, 0]]]))
    assert dice.tolist() == [[pytest.approx(2 / 3)]]
    assert iou.tolist() == [[0.5]]
