from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from ics_apps.tasks.segmentation.metrics.calibration import calibration, expected_calibration_error
from ics_apps.tasks.segmentation.targets import IGNORE


def _random(space: tuple[int, ...] = (12, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(3, *space, generator=generator)).softmax(0)
    return p, torch.randint(0, 3, space, generator=generator)


def test_confidence_of_eight_tenths_is_right_in_eight_tenths() -> None:
    confidence = np.full(10, 0.8)
    assert expected_calibration_error(confidence, np.arange(10) < 8) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(confidence, np.ones(10, dtype=bool)) == pytest.approx(0.2)


def test_errors_of_two_bins_do_not_cancel() -> None:
    confidence, correct = np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, False, True, True])
    assert expected_calibration_error(confidence, correct) == pytest.approx((0.4 + 0.4) / 2)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(0)


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    # With a bin of its own the two errors would add up instead.
    found = expected_calibration_error(np.array([1.0, 0.95]), np.array([False, True]))
    assert found == pytest.approx(abs(1.95 - 1) / 2)


def test_the_error_of_a_case_is_torchmetrics_top_one_error() -> None:
    p, target = _random()
    expected = multiclass_calibration_error(p.flatten(1).T, target.flatten(), num_classes=3, n_bins=15)
    assert calibration(p, target).ece == pytest.approx(float(expected), rel=1e-5)


def test_brier_sums_over_classes() -> None:
    half = torch.full((2, 4), 0.5)
    assert calibration(half, torch.tensor([0, 1, 1, 0])).brier == pytest.approx(0.5)
    wrong = torch.tensor([[1.0], [0.0]])
    assert calibration(wrong, torch.tensor([1])).brier == 2.0
    p, target = _random()
    one_hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 0)
    assert calibration(p, target).brier == pytest.approx(float(((p - one_hot) ** 2).sum(0).mean()), rel=1e-5)


def test_one_label_has_the_figures_of_two_classes() -> None:
    p, target = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(1)), torch.zeros(9, 9, dtype=torch.long)
    target[2:5, 3:7] = 1
    target[0] = IGNORE
    assert calibration(p, target[None]) == pytest.approx(calibration(torch.cat([1 - p, p]), target), rel=1e-6)


def test_ignored_positions_do_not_count() -> None:
    p, target = _random((60,))
    target[::3] = IGNORE
    known = target != IGNORE
    left_out = calibration(p[:, known], target[known])
    found = calibration(p, target)
    assert (found.ece, found.brier) == pytest.approx((left_out.ece, left_out.brier))


def test_the_box_holds_the_foreground_and_a_tenth_around_it() -> None:
    target = torch.zeros(40, 40, dtype=torch.long)
    target[10:30, 20:24] = 1
    sure = torch.stack([1.0 - target, target.float()])
    outside = torch.full_like(sure, 0.5)
    outside[:, 8:32, 19:25] = sure[:, 8:32, 19:25]
    found = calibration(outside, target)
    assert found.ece_box == 0.0
    assert found.ece > 0.3
    outside[:, 8, 19] = 0.5
    assert calibration(outside, target).ece_box == pytest.approx(0.5 / (24 * 6))


def test_without_foreground_there_is_no_box_and_without_known_positions_nothing() -> None:
    p, target = _random()
    assert math.isnan(calibration(p, target * 0).ece_box)
    assert all(math.isnan(value) for value in calibration(p, torch.full_like(target, IGNORE)))


def test_half_precision_probabilities_are_read_in_single_precision() -> None:
    p, target = _random()
    assert calibration(p.half(), target) == calibration(p.half().float(), target)
