from __future__ import annotations

import math

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F

from ics_apps.tasks.segmentation import DiceCELoss
from ics_apps.tasks.segmentation.losses import CombinedLoss, CrossEntropyLoss, DeepSupervisionLoss, DiceLoss


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


@pytest.mark.parametrize("labels", [False, True])
def test_dice_with_cross_entropy_is_the_sum_of_both(labels: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    shape = logits.shape if labels else (2, 6, 5)
    target = torch.randint(-1, 2, shape, generator=generator)
    both = DiceCELoss(dice_weight=0.5, ce_weight=2.0, smooth=3.0)(logits, target)
    parts = CombinedLoss([DiceLoss(smooth=3.0), CrossEntropyLoss()], [0.5, 2.0])(logits, target)
    assert float(both) == pytest.approx(float(parts), rel=1e-12)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0)])
def test_weights_that_make_no_loss_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="allowed are values >= 0, not both 0"):
        DiceCELoss(*weights)


@pytest.mark.parametrize(("losses", "weights"), [(0, None), (2, [1.0]), (1, [-1.0])])
def test_a_sum_needs_one_weight_for_each_loss(losses: int, weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="allowed are one loss or more"):
        CombinedLoss([DiceLoss() for _ in range(losses)], weights)


def test_a_recipe_names_losses_inside_losses() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    here = "ics_apps.tasks.segmentation.losses."
    terms = [
        {"class_path": here + "DiceLoss", "init_args": {"class_weights": [1, 2], "per_case": True}},
        {"class_path": here + "FocalLoss", "init_args": {"gamma": 3}},
    ]
    inner = {"class_path": here + "CombinedLoss", "init_args": {"losses": terms, "weights": [1, 0.5]}}
    config = {"loss": {"class_path": here + "DeepSupervisionLoss", "init_args": {"loss": inner}}}
    loss = parser.instantiate(parser.parse_object(config)).loss
    assert isinstance(loss, DeepSupervisionLoss)
    assert isinstance(loss.loss, CombinedLoss)
    assert loss.loss.weights == [1.0, 0.5]
    assert loss.loss.losses[1].gamma == 3.0
    assert loss.loss.losses[0].class_weights.tolist() == [1.0, 2.0]
