from __future__ import annotations

import numpy as np
import pytest
import torch

from ics_apps.tasks.segmentation.losses import BoundaryLoss
from ics_apps.tasks.segmentation.losses.boundary import signed_distance


def _disc(radius: float, size: int = 15, dim: int = 2) -> np.ndarray:
    grid = np.indices((size,) * dim) - size // 2
    return (grid**2).sum(0) <= radius**2


def _certain(target: torch.Tensor) -> torch.Tensor:
    return 400.0 * torch.stack([1 - 2 * target, 2 * target - 1], 1)


@pytest.mark.parametrize("radius", [1, 2, 4.5])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_truth_itself_is_negative_for_a_disc(radius: float, dim: int) -> None:
    target = torch.from_numpy(_disc(radius, dim=dim)).long()[None]
    assert float(BoundaryLoss()(_certain(target), target)) < 0


@pytest.mark.parametrize("fill", [0, 1])
def test_without_a_boundary_the_loss_is_zero(fill: int) -> None:
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert float(BoundaryLoss()(logits, torch.full((1, 6, 6), fill))) == 0


def test_it_is_the_mean_of_probability_times_distance() -> None:
    mask = _disc(3)
    target = torch.from_numpy(mask).long()[None]
    logits = torch.randn(1, 2, 15, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)[0, 1].numpy()
    expected = (p * signed_distance(mask, (1.0, 1.0))).mean()
    assert float(BoundaryLoss()(logits, target)) == pytest.approx(expected, rel=1e-12)


def test_at_spacing_one_the_distance_is_that_of_the_authors_code() -> None:
    from scipy.ndimage import distance_transform_edt

    mask = np.random.default_rng(0).random((12, 9)) < 0.5
    reference = distance_transform_edt(~mask) * ~mask - (distance_transform_edt(mask) - 1) * mask
    assert np.array_equal(signed_distance(mask, (1.0, 1.0)), reference)


@pytest.mark.parametrize("unit", [0.1, 1.0, 7.0])
def test_the_loss_has_the_unit_of_the_spacing(unit: float) -> None:
    target = torch.from_numpy(_disc(3)).long()[None]
    logits = torch.randn(1, 2, 15, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = BoundaryLoss([2.0, 0.5])(logits, target)
    assert float(BoundaryLoss([2 * unit, 0.5 * unit])(logits, target)) == pytest.approx(unit * float(one))


def test_inside_is_never_positive_and_outside_always_for_any_spacing() -> None:
    mask = _disc(4)
    phi = signed_distance(mask, (0.3, 0.9))
    assert phi[mask].max() == 0
    assert phi[~mask].min() == pytest.approx(0.3)


def test_each_axis_has_its_own_spacing() -> None:
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, 2] = True
    phi = signed_distance(mask, (5.0, 0.5))
    assert (phi[4, 2], phi[2, 4]) == (10.0, 1.0)


def test_a_spacing_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are values > 0"):
        BoundaryLoss([1.0, 0.0])
    with pytest.raises(ValueError, match="3 values of spacing and the images have 2 axes"):
        BoundaryLoss([1.0, 1.0, 1.0])(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
