from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ics_apps.tasks.segmentation import DiceCELoss


def _confident(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    return (F.one_hot(classes, num_classes).movedim(-1, 1).float() * 2 - 1) * 40


def test_a_perfect_confident_prediction_costs_nothing() -> None:
    truth = torch.randint(0, 3, (2, 5, 5), generator=torch.Generator().manual_seed(0))
    assert float(DiceCELoss()(_confident(truth, 3), truth)) < 1e-6


def test_two_half_overlapping_squares_have_dice_one_half() -> None:
    truth, predicted = torch.zeros(1, 4, 8, dtype=torch.long), torch.zeros(1, 4, 8, dtype=torch.long)
    truth[0, :, :4] = 1
    predicted[0, :, 2:6] = 1
    loss = DiceCELoss(ce_weight=0.0, smooth=0.0)(_confident(predicted, 2), truth)
    assert float(loss) == pytest.approx(0.5, abs=1e-6)


def test_uniform_logits_cost_log_k_in_cross_entropy() -> None:
    loss = DiceCELoss(dice_weight=0.0)(torch.zeros(1, 4, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))
    assert float(loss) == pytest.approx(math.log(4), abs=1e-6)


def test_the_background_does_not_enter_dice() -> None:
    truth = torch.zeros(1, 6, 6, dtype=torch.long)
    truth[0, 0, 0] = 1
    missed = DiceCELoss(ce_weight=0.0, smooth=0.0)(_confident(torch.zeros_like(truth), 2), truth)
    assert float(missed) == pytest.approx(1.0, abs=1e-6)


def test_an_absent_class_gives_a_finite_gradient() -> None:
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    DiceCELoss()(logits, torch.zeros(1, 4, 4, dtype=torch.long)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_give_a_single_precision_loss() -> None:
    logits = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    assert DiceCELoss()(logits, torch.zeros(1, 4, 4, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0)])
def test_weights_that_make_no_loss_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="allowed are values >= 0, not both 0"):
        DiceCELoss(*weights)
