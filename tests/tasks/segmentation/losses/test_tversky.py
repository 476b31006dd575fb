from __future__ import annotations

import pytest
import torch

from ics_apps.tasks.segmentation.losses import DiceLoss, TverskyLoss

TRUTH = torch.tensor([[1, 1, 1, 1, 0, 0]])


def _prediction(classes: list[int]) -> torch.Tensor:
    p = torch.tensor([classes], dtype=torch.float64)
    return torch.stack([1 - 2 * p, 2 * p - 1], 1) * 400


@pytest.mark.parametrize("smooth", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("per_case", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_equal_halves_are_dice_with_twice_the_smoothing(smooth: float, per_case: bool, background: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, 4, (3, 5, 5), generator=generator)
    tversky = TverskyLoss(0.5, 0.5, 1.0, per_case, background, smooth)(logits, target)
    dice = DiceLoss(per_case, background, 2 * smooth)(logits, target)
    assert float(tversky) == pytest.approx(float(dice), rel=1e-12)


def test_alpha_weighs_false_positives_and_beta_false_negatives() -> None:
    loss = TverskyLoss(alpha=0.2, beta=0.9, smooth=0.0)
    false_positive = loss(_prediction([1, 1, 1, 1, 1, 0]), TRUTH)
    false_negative = loss(_prediction([1, 1, 1, 0, 0, 0]), TRUTH)
    assert float(false_positive) == pytest.approx(1 - 4 / 4.2)
    assert float(false_negative) == pytest.approx(1 - 3 / 3.9)


def test_the_exponent_is_taken_of_each_class() -> None:
    truth, p = torch.tensor([[1, 2, 2, 0]]), torch.tensor([[1, 2, 0, 0]])
    logits = (torch.nn.functional.one_hot(p, 3).movedim(-1, 1).double() * 2 - 1) * 400
    loss = TverskyLoss(0.5, 0.5, exponent=0.75, smooth=0.0)(logits, truth)
    assert float(loss) == pytest.approx((1 / 3) ** 0.75 / 2, abs=1e-5)


@pytest.mark.parametrize(("name", "value"), [("alpha", -0.1), ("beta", -0.1), ("exponent", 0.0), ("smooth", -1.0)])
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        TverskyLoss(**{name: value})
