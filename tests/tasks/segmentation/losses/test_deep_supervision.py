from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses import DeepSupervisionLoss, DiceCELoss
from ics_apps.tasks.segmentation.losses.deep_supervision import nearest_target, scale_weights


def test_five_scales_weigh_eight_four_two_one_and_nothing() -> None:
    assert scale_weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert scale_weights(1) == [1.0]
    assert scale_weights(2) == [1.0, 0.0]


@pytest.mark.parametrize("number", range(1, 8))
def test_the_weights_sum_to_one(number: int) -> None:
    assert sum(scale_weights(number)) == pytest.approx(1)


@pytest.mark.parametrize("size", [(4, 4), (2, 8), (5, 3), (16, 12)])
def test_the_target_is_read_as_nearest_exact_interpolation_reads_it(size: tuple[int, int]) -> None:
    target = torch.arange(2 * 8 * 8).reshape(2, 8, 8)
    expected = F.interpolate(target.double().unsqueeze(1), size, mode="nearest-exact").squeeze(1).long()
    assert torch.equal(nearest_target(target, size, 1), expected)
    assert torch.equal(nearest_target(target.unsqueeze(1), size, 2), expected.unsqueeze(1))


def _scales(labels: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(2, 3, n, n, n, generator=generator, dtype=torch.float64) for n in (8, 4, 2, 1)]
    shape = (2, 3, 8, 8, 8) if labels else (2, 8, 8, 8)
    return scales, torch.randint(-1, 2, shape, generator=generator)


@pytest.mark.parametrize("labels", [False, True])
def test_it_is_the_weighted_loss_of_each_scale(labels: bool) -> None:
    scales, target = _scales(labels)
    axis, loss = (2 if labels else 1), DiceCELoss()
    each = [loss(z, nearest_target(target, z.shape[2:], axis)) for z in scales]
    expected = 4 / 7 * each[0] + 2 / 7 * each[1] + 1 / 7 * each[2]
    for given in (scales, tuple(scales)):
        assert float(DeepSupervisionLoss()(given, target)) == pytest.approx(float(expected), rel=1e-12)


def test_one_tensor_has_the_plain_loss() -> None:
    scales, target = _scales(False)
    assert float(DeepSupervisionLoss()(scales[0], target)) == pytest.approx(float(DiceCELoss()(scales[0], target)))


def test_the_lowest_scale_takes_part_with_no_gradient() -> None:
    scales, target = _scales(False)
    for scale in scales:
        scale.requires_grad_()
    DeepSupervisionLoss()(scales, target).backward()
    grads = [scale.grad for scale in scales]
    assert all(grad is not None for grad in grads)
    assert [bool(grad.abs().max() > 0) for grad in grads if grad is not None] == [True, True, True, False]
