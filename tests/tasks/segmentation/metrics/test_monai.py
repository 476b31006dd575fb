"""Our figures against MONAI's, where it is installed: it is no dependency."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses import ClDiceLoss, DiceLoss, FocalLoss, TverskyLoss
from ics_apps.tasks.segmentation.metrics import CaseScores

pytestmark = pytest.mark.slow
CLASSES = 3
TOLERANCE = [1.0, 2.5]


def _masks(rng: np.random.Generator, dim: int) -> tuple[Tensor, Tensor]:
    """Eight cases: noise or blocks; in some a class is missing from truth, prediction or both."""
    shape = tuple(rng.integers(7, 16, dim))
    pair = []
    for _ in range(2):
        noise = rng.integers(0, CLASSES, (8, *shape))
        for case in noise[4:]:
            case[:] = 0
            for k in range(1, CLASSES):
                start = rng.integers(0, 5, dim)
                case[tuple(slice(at, at + int(rng.integers(1, 8))) for at in start)] = k
        pair.append(torch.from_numpy(noise))
    for case, (in_truth, in_prediction) in enumerate([(True, False), (False, True), (True, True)]):
        for mask, gone in zip(pair, (in_prediction, in_truth), strict=True):
            if gone:
                mask[case][mask[case] == 1] = 0
    return pair[0], pair[1]


def _monai(prediction: Tensor, target: Tensor, spacing: Tensor) -> dict[str, Tensor]:
    metrics = pytest.importorskip("monai.metrics")
    one, other = (F.one_hot(mask, CLASSES).movedim(-1, 1) for mask in (prediction, target))
    steps = spacing.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each empty mask
        return {
            "dice": metrics.DiceHelper(include_background=False, reduction="none", get_not_nans=False)(one, other),
            "iou": metrics.compute_iou(one, other, include_background=False),
            "hd95": metrics.compute_hausdorff_distance(one, other, percentile=95, spacing=steps),
            "hd": metrics.compute_hausdorff_distance(one, other, spacing=steps),
            "asd": metrics.compute_average_surface_distance(one, other, symmetric=True, spacing=steps),
            "nsd": metrics.compute_surface_dice(one, other, TOLERANCE, spacing=steps),
        }


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_every_figure_of_every_case_and_class_is_monais(dim: int, seed: int) -> None:
    pytest.importorskip("monai")
    rng = np.random.default_rng(seed)
    prediction, target = _masks(rng, dim)
    spacing = torch.from_numpy(rng.uniform(0.3, 5, (8, dim)))
    scores = CaseScores(["background", "a", "b"], tolerance=TOLERANCE, empty="monai")
    scores.update(prediction, target, spacing, [str(case) for case in range(8)])
    found = scores.compute().by_class
    for figure, expected in _monai(prediction, target, spacing).items():
        np.testing.assert_allclose(found[figure], expected.double().numpy(), rtol=1e-6, err_msg=figure)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 4, 12, 10, generator=generator)
    return logits, torch.randint(0, 4, (3, 12, 10), generator=generator)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_dice_and_tversky_are_monais(background: bool, batch: bool) -> None:
    losses = pytest.importorskip("monai.losses")
    logits, target = _batch()
    options = {"include_background": background, "softmax": True, "to_onehot_y": True, "batch": batch}
    dice = losses.DiceLoss(**options)(logits, target.unsqueeze(1))
    assert float(DiceLoss(not batch, background, 1e-5)(logits, target)) == pytest.approx(float(dice), rel=1e-6)
    tversky = losses.TverskyLoss(alpha=0.3, beta=0.7, **options)(logits, target.unsqueeze(1))
    ours = TverskyLoss(per_case=not batch, background=background, smooth=1e-5)(logits, target)
    assert float(ours) == pytest.approx(float(tversky), rel=1e-6)


def test_focal_is_monais_times_the_number_of_classes() -> None:
    losses = pytest.importorskip("monai.losses")
    logits, target = _batch()
    theirs = losses.FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True)(logits, target.unsqueeze(1))
    assert float(FocalLoss()(logits, target)) == pytest.approx(4 * float(theirs), rel=1e-6)


@pytest.mark.parametrize("space", [(16, 14), (8, 9, 10)])
def test_cldice_of_one_case_and_class_is_monais(space: tuple[int, ...]) -> None:
    losses = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 2, *space, generator=generator)
    target = torch.randint(0, 2, (1, *space), generator=generator)
    one_hot = F.one_hot(target, 2).movedim(-1, 1).float()
    # `smooth` is what MONAI adds to the denominator of the harmonic mean; at its 1e-4 no prediction is perfect.
    theirs = losses.SoftclDiceLoss(iter_=3, smooth=1e-12, include_background=False)(logits.softmax(1), one_hot)
    assert float(ClDiceLoss()(logits, target)) == pytest.approx(float(theirs), rel=1e-6)
