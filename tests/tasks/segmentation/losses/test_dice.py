from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses import DiceLoss


def confident(classes: Tensor, num_classes: int) -> Tensor:
    return (F.one_hot(classes, num_classes).movedim(-1, 1).double() * 2 - 1) * 400


def _squares() -> tuple[Tensor, Tensor]:
    truth, predicted = torch.zeros(1, 4, 8, dtype=torch.long), torch.zeros(1, 4, 8, dtype=torch.long)
    truth[0, :, :4] = 1
    predicted[0, :, 2:6] = 1
    return truth, predicted


def test_two_half_overlapping_squares_have_dice_one_half() -> None:
    truth, predicted = _squares()
    assert float(DiceLoss(smooth=0.0)(confident(predicted, 2), truth)) == 0.5


def test_two_soft_half_overlapping_squares_have_dice_one_half() -> None:
    # p of 1/2 on all 8 columns: overlap 8, sizes 16 and 16.
    truth, _ = _squares()
    assert float(DiceLoss(smooth=0.0)(torch.zeros(1, 2, 4, 8), truth)) == pytest.approx(0.5)


def test_a_perfect_prediction_costs_nothing_and_an_absent_class_neither() -> None:
    truth, _ = _squares()
    assert float(DiceLoss(smooth=1e-5)(confident(truth, 2), truth)) == 0.0
    assert float(DiceLoss(smooth=1e-5)(confident(truth * 0, 2), truth * 0)) == 0.0


def test_the_batch_is_summed_before_the_ratio_unless_per_case() -> None:
    truth, predicted = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]]), torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]])
    assert float(DiceLoss(smooth=0.0)(confident(predicted, 2), truth)) == pytest.approx(1 - 6 / 8)
    assert float(DiceLoss(per_case=True, smooth=0.0)(confident(predicted, 2), truth)) == pytest.approx(0.5)


def test_the_background_counts_only_on_request() -> None:
    truth, predicted = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[0, 0, 0, 0]])
    assert float(DiceLoss(smooth=0.0)(confident(predicted, 2), truth)) == 1.0
    with_background = DiceLoss(background=True, smooth=0.0)(confident(predicted, 2), truth)
    assert float(with_background) == pytest.approx((1 + 1 - 6 / 7) / 2)


def test_class_weights_weigh_the_mean() -> None:
    truth, predicted = torch.tensor([[1, 1, 2, 0]]), torch.tensor([[1, 1, 0, 0]])  # class 1 right, class 2 missed
    loss = DiceLoss(smooth=0.0, class_weights=[9.0, 1.0, 3.0])
    assert float(loss(confident(predicted, 3), truth)) == pytest.approx(0.75)


def test_a_negative_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are values >= 0"):
        DiceLoss(smooth=-1.0)
