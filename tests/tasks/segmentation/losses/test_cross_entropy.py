from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses import CrossEntropyLoss, FocalLoss
from ics_apps.tasks.segmentation.targets import IGNORE


def _random() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(-1, 3, (2, 6, 5), generator=generator)


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_cross_entropy_is_torchs_with_weights_and_ignored_positions(weights: list[float] | None) -> None:
    logits, target = _random()
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, target, tensor, ignore_index=IGNORE)
    assert float(CrossEntropyLoss(weights)(logits, target)) == pytest.approx(float(expected), rel=1e-6)


def test_cross_entropy_of_labels_is_torchs_binary_one_over_known_entries() -> None:
    logits, _ = _random()
    target = torch.randint(-1, 2, logits.shape, generator=torch.Generator().manual_seed(1)).double()
    known = target != IGNORE
    expected = F.binary_cross_entropy_with_logits(logits[known], target[known])
    assert float(CrossEntropyLoss()(logits, target)) == pytest.approx(float(expected), rel=1e-12)


def test_a_labels_weight_weighs_its_entries() -> None:
    logits = torch.tensor([[[0.0], [math.log(3)]]])  # p of 1/2 and 3/4
    loss = CrossEntropyLoss([1.0, 3.0])(logits, torch.ones(1, 2, 1))
    assert float(loss) == pytest.approx((math.log(2) + 3 * math.log(4 / 3)) / 4)


def test_soft_labels_cost_least_where_p_equals_them() -> None:
    target = torch.full((1, 1, 1), 0.3)
    z = torch.tensor([[[math.log(0.3 / 0.7)]]], requires_grad=True)
    CrossEntropyLoss()(z, target).backward()
    assert z.grad is not None
    assert float(z.grad) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_focal_with_gamma_zero_is_cross_entropy(weights: list[float] | None) -> None:
    logits, target = _random()
    labels = (logits.flip(-1) > 0).double()
    for truth in (target, labels):
        focal, plain = FocalLoss(0.0, weights)(logits, truth), CrossEntropyLoss(weights)(logits, truth)
        assert float(focal) == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_follows_its_formula(gamma: float) -> None:
    p = torch.tensor([0.9, 0.6, 0.1], dtype=torch.float64)
    logits = torch.stack([torch.zeros(3, dtype=torch.float64), torch.logit(p)])[None]
    expected = (-((1 - p) ** gamma) * p.log()).mean()
    assert float(FocalLoss(gamma)(logits, torch.ones(1, 3, dtype=torch.long))) == pytest.approx(float(expected))


def test_focal_keeps_its_digits_where_all_is_right() -> None:
    # 1 - q = exp(-20), below the resolution of q itself in float32.
    logits = torch.tensor([[[-20.0]]])
    expected = math.exp(-20) ** 3
    assert float(FocalLoss(2.0)(logits, torch.zeros(1, 1, 1))) == pytest.approx(expected, rel=1e-5)


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma=-1"):
        FocalLoss(-1.0)
