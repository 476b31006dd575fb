from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ics_apps.tasks.segmentation.case_table import CaseTable
from ics_apps.tasks.segmentation.metrics import CaseScores, HausdorffDistance95, OverlapScores
from ics_apps.tasks.segmentation.metrics.case_scores import FIGURES
from ics_apps.tasks.segmentation.targets import IGNORE

NAMES = ["background", "a", "b"]


def _random(cases: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(-1, 3, (2, cases, 9, 8), generator=generator)
    spacing = 0.5 + 2 * torch.rand(cases, 2, generator=generator)
    return masks[0].clamp(min=0), masks[1], spacing, [f"case_{seed}_{k}" for k in range(cases)]


def _row(prediction: Tensor, target: Tensor, **options: Any) -> dict[str, float]:
    scores = CaseScores(["background", "a"], **options)
    scores.update(prediction[None], target[None], torch.tensor([[3.0, 4.0]]), ["x"])
    table: CaseTable = scores.compute()
    return {figure: float(values[0, 0]) for figure, values in table.by_class.items()}


def test_dice_iou_and_hd95_are_those_of_the_metrics_of_their_name() -> None:
    predicted, truth, spacing, cases = _random()
    scores, overlap, distance = CaseScores(NAMES), OverlapScores(NAMES), HausdorffDistance95(NAMES)
    scores.update(predicted, truth, spacing, cases)
    overlap.update(predicted, truth)
    distance.update(predicted, truth, spacing)
    found = scores.compute().metrics()
    for name, value in {**overlap.compute(), **distance.compute()}.items():
        assert found[name] == pytest.approx(float(value), rel=1e-6)


def test_a_shifted_square_has_its_known_figures() -> None:
    a, b = (torch.zeros(32, 32, dtype=torch.long) for _ in range(2))
    a[8:18, 8:18] = 1
    b[8:18, 11:21] = 1
    found = _row(a, b, tolerance=12.0)
    expected = {"dice": 0.7, "iou": 70 / 130, "nsd": 1.0, "hd95": 12.0, "hd": 12.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


EMPTY, FULL = torch.zeros(4, 4, dtype=torch.long), torch.ones(4, 4, dtype=torch.long)


@pytest.mark.parametrize("empty", ["counted", "monai"])
def test_nothing_to_find_and_nothing_found_is_not_counted(empty: str) -> None:
    assert all(math.isnan(value) for value in _row(EMPTY, EMPTY, empty=empty).values())


@pytest.mark.parametrize(("prediction", "target"), [(EMPTY, FULL), (FULL, EMPTY)])
def test_a_miss_and_an_invention_are_counted_at_the_worst(prediction: Tensor, target: Tensor) -> None:
    found = _row(prediction, target)
    assert [found[name] for name in ("dice", "iou", "nsd")] == [0, 0, 0]
    assert [found[name] for name in ("hd95", "hd", "asd")] == [20, 20, 20]  # of 12 by 16


def test_monais_rule_does_not_see_an_invention_in_dice_nor_a_miss_in_hd95() -> None:
    nan, inf = pytest.approx(math.nan, nan_ok=True), math.inf
    miss, invention = _row(EMPTY, FULL, empty="monai"), _row(FULL, EMPTY, empty="monai")
    assert [miss[name] for name in FIGURES] == [0, 0, 0, nan, inf, inf]
    assert [invention[name] for name in FIGURES] == [nan, nan, 0, nan, inf, inf]


def test_each_class_has_its_own_tolerance() -> None:
    truth = torch.zeros(1, 12, 12, dtype=torch.long)
    truth[0, 2:5, 2:5], truth[0, 7:10, 2:5] = 1, 2
    scores = CaseScores(NAMES, tolerance=[1.0, 2.0])
    scores.update(truth.roll(2, 2), truth, torch.ones(1, 2), ["x"])
    found = scores.compute().metrics()
    assert found["nsd/b"] == 1.0
    assert found["nsd/a"] < 1.0


def test_labels_that_exclude_each_other_score_as_the_classes_they_are() -> None:
    predicted, truth, spacing, cases = _random()
    classes, labels = CaseScores(NAMES), CaseScores(NAMES[1:], multi_label=True)
    classes.update(predicted, truth, spacing, cases)
    ignored = truth.unsqueeze(1) == IGNORE
    one, other = (torch.stack([mask == 1, mask == 2], 1).long() for mask in (predicted, truth))
    labels.update(one, other.masked_fill(ignored, IGNORE), spacing, cases)
    assert classes.compute().metrics() == labels.compute().metrics()


def test_calibration_needs_probabilities() -> None:
    predicted, truth, spacing, cases = _random()
    p = torch.rand(4, 3, 9, 8, generator=torch.Generator().manual_seed(3)).softmax(1)
    scores = CaseScores(NAMES)
    scores.update(predicted, truth, spacing, cases)
    assert "ece" not in scores.compute().metrics()
    scores.reset()
    scores.update(p.argmax(1), truth, spacing, cases, p)
    assert {"ece", "ece_box", "brier", "brier_low"} <= set(scores.compute().metrics())


def test_cases_one_by_one_are_cases_together() -> None:
    predicted, truth, spacing, cases = _random()
    together, single = CaseScores(NAMES), CaseScores(NAMES)
    together.update(predicted, truth, spacing, cases)
    for index in range(4):
        part = slice(index, index + 1)
        single.update(predicted[part], truth[part], spacing[part], cases[part])
    assert together.compute().metrics() == single.compute().metrics()


def test_two_ranks_make_one_table_and_a_repeated_case_counts_once() -> None:
    first, second = _random(3), _random(2, seed=1)
    # The sampler gave the second rank the first rank's first case again.
    second = (
        torch.cat([second[0], first[0][:1]]), torch.cat([second[1], first[1][:1]]),
        torch.cat([second[2], first[2][:1]]), [*second[3], first[3][0]],
    )  # fmt: skip
    other = CaseScores(NAMES)
    other.update(*second)

    def gather(own: Tensor, group: Any) -> list[Tensor]:
        return [own, torch.cat(other.names if own.dtype == torch.uint8 else other.rows)]

    rank = CaseScores(NAMES, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    rank.update(*first)
    alone = CaseScores(NAMES)
    alone.update(*first)
    alone.update(*(part[:2] for part in second))
    table, expected = rank.compute(), alone.compute()
    assert table.cases == expected.cases == [*first[3], *second[3][:2]]
    assert table.metrics() == expected.metrics()


@pytest.mark.parametrize("name", ["plain", "with ünïcode", "x" * 300, "ü" * 200])
def test_a_name_comes_back_and_of_a_long_one_its_end(name: str) -> None:
    scores = CaseScores(["background", "a"])
    scores.update(FULL[None], FULL[None], torch.ones(1, 2), [name])
    (found,) = scores.compute().cases
    assert name.endswith(found)
    assert len(found.encode()) >= min(len(name.encode()), 255)


def test_there_must_be_a_name_for_each_case() -> None:
    scores = CaseScores(["background", "a"])
    with pytest.raises(ValueError, match="zip"):
        scores.update(FULL[None], FULL[None], torch.ones(1, 2), ["a", "b"])


@pytest.mark.parametrize("tolerance", [-1.0, [1.0], [1.0, 2.0, 3.0]])
def test_tolerances_that_do_not_fit_are_refused(tolerance: Any) -> None:
    with pytest.raises(ValueError, match="give one value >= 0 for all, or one for each"):
        CaseScores(NAMES, tolerance=tolerance)


def test_a_misspelt_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'monai'"):
        CaseScores(NAMES, empty="monay")  # type: ignore[arg-type]
