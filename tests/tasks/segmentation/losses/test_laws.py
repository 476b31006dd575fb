"""What holds for every loss: ignored positions, labels and classes, precision, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ics_apps.tasks.segmentation.losses import (
    BoundaryLoss,
    ClDiceLoss,
    CombinedLoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceCELoss,
    DiceLoss,
    FocalLoss,
    TverskyLoss,
)
from ics_apps.tasks.segmentation.targets import IGNORE

LOSSES = {
    "dice": DiceLoss(),
    "dice of cases, with background": DiceLoss(per_case=True, background=True),
    "weighted dice": DiceLoss(class_weights=[1.0, 2.0, 0.5]),
    "cross-entropy": CrossEntropyLoss(),
    "weighted cross-entropy": CrossEntropyLoss([1.0, 2.0, 0.5]),
    "focal": FocalLoss(),
    "weighted focal": FocalLoss(1.5, [1.0, 2.0, 0.5]),
    "tversky": TverskyLoss(),
    "focal tversky": TverskyLoss(exponent=0.75, per_case=True),
    "boundary": BoundaryLoss(),
    "cldice": ClDiceLoss(),
    "dice and cross-entropy": DiceCELoss(),
    "combined": CombinedLoss([DiceCELoss(), BoundaryLoss()], [1.0, 0.1]),
    "deep supervision": DeepSupervisionLoss(),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _random(
    space: tuple[int, ...] = (6, 5), seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *space, generator=generator, dtype=dtype)
    return logits, torch.randint(0, 3, (2, *space), generator=generator)


def _some_ignored(target: Tensor) -> Tensor:
    mask = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    return target.masked_fill(mask, IGNORE)


def _labels(logits: Tensor) -> Tensor:
    return (torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) < 0.4).float()


@each_loss
@pytest.mark.parametrize("labels", [False, True])
def test_logits_of_ignored_positions_change_nothing_and_have_no_gradient(loss: nn.Module, labels: bool) -> None:
    logits, target = _random()
    target = _some_ignored(_labels(logits) if labels else target)
    ignored = (target == IGNORE) if labels else (target == IGNORE).unsqueeze(1).expand_as(logits)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    assert logits.grad[ignored].abs().max() == 0
    assert logits.grad[~ignored].abs().max() > 0
    assert torch.equal(loss(torch.where(ignored, 7.0, logits), target), value)


@each_loss
@pytest.mark.parametrize("labels", [False, True])
def test_a_batch_in_which_all_is_ignored_is_finite_and_teaches_nothing(loss: nn.Module, labels: bool) -> None:
    logits, target = _random()
    target = torch.full_like(_labels(logits) if labels else target, IGNORE)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize(
    "loss", [DiceLoss(), CrossEntropyLoss([1.0, 3.0, 2.0]), FocalLoss(), TverskyLoss(), DiceCELoss()]
)
def test_where_space_has_no_meaning_ignoring_is_leaving_out(loss: nn.Module) -> None:
    logits, target = _random((40,))
    logits, target = logits[:1], _some_ignored(target[:1])
    known = target[0] != IGNORE
    left_out = loss(logits[..., known], target[..., known])
    assert float(loss(logits, target)) == pytest.approx(float(left_out), rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [DiceLoss(), CrossEntropyLoss(), FocalLoss(), TverskyLoss(), BoundaryLoss(), ClDiceLoss(), DiceCELoss()],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("space", [(9,), (7, 6), (6, 5, 4)])
def test_one_label_is_two_classes_whose_background_has_logit_zero(loss: nn.Module, space: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 1, *space, generator=generator, dtype=torch.float64)
    target = _some_ignored(torch.randint(0, 2, (2, *space), generator=generator))
    classes = loss(torch.cat([torch.zeros_like(z), z], dim=1), target)
    label = loss(z, target.unsqueeze(1).double())
    assert float(label) == pytest.approx(float(classes), rel=1e-9)


@each_loss
def test_labels_may_be_booleans_or_numbers(loss: nn.Module) -> None:
    logits, _ = _random()
    target = _labels(logits)
    assert torch.equal(loss(logits, target.bool()), loss(logits, target))


@each_loss
@pytest.mark.parametrize("labels", [False, True])
def test_a_loss_is_in_single_precision_under_autocast(loss: nn.Module, labels: bool) -> None:
    logits, target = _random()
    target = _labels(logits) if labels else target
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(half.float(), target))


SMOOTH = {name: loss for name, loss in LOSSES.items() if name != "cldice"}  # max-pooling has kinks


@pytest.mark.parametrize("loss", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("labels", [False, True])
def test_gradients_are_those_of_finite_differences(loss: nn.Module, labels: bool) -> None:
    logits, target = _random((4, 3), dtype=torch.float64)
    target = _some_ignored(_labels(logits).double() if labels else target)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())


@each_loss
def test_confident_logits_give_finite_gradients(loss: nn.Module) -> None:
    _, target = _random()
    for sign in (1.0, -1.0):
        logits = (sign * 200 * (nn.functional.one_hot(target, 3).movedim(-1, 1) - 0.5)).requires_grad_()
        loss(logits, target).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [DiceLoss(), CrossEntropyLoss(), BoundaryLoss(), ClDiceLoss(), DiceCELoss()])
def test_a_list_of_scales_is_sent_to_deep_supervision(loss: nn.Module) -> None:
    logits, target = _random()
    with pytest.raises(TypeError, match="wrap it in DeepSupervisionLoss"):
        loss([logits], target)


@pytest.mark.parametrize("loss", [DiceLoss, CrossEntropyLoss, TverskyLoss])
def test_class_weights_are_checked(loss: type[nn.Module]) -> None:
    for weights in ([], [0.0, 0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="allowed are values >= 0, not all 0"):
            loss(class_weights=weights)
    with pytest.raises(ValueError, match="has 2 values and the logits have 3 channels"):
        loss(class_weights=[1.0, 2.0])(*_random())


@each_loss
def test_a_loss_adds_nothing_to_a_checkpoint(loss: nn.Module) -> None:
    assert not loss.state_dict()
