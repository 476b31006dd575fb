from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.segmentation import dice_score

from ics_apps.tasks.segmentation.metrics import HausdorffDistance95, OverlapScores, hausdorff95

NAMES = ["background", "a", "b"]


def _square(row: int, column: int, size: int = 10, shape: tuple[int, int] = (32, 32)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[row : row + size, column : column + size] = True
    return mask


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dice_equals_torchmetrics_per_case_where_the_class_is_present(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, truth = (torch.randint(0, 3, (3, 8, 8), generator=generator) for _ in range(2))
    scores = OverlapScores(NAMES)
    scores.update(predicted, truth)
    per_case = dice_score(
        predicted, truth, num_classes=3, include_background=False, average="none", input_format="index"
    )
    expected = per_case.nanmean(0).nanmean()
    assert float(scores.compute()["dice"]) == pytest.approx(float(expected), abs=1e-6)


def test_iou_is_dice_over_two_minus_dice_for_one_case() -> None:
    scores = OverlapScores(["background", "a"])
    scores.update(torch.tensor([[0, 1, 1, 0, 1]]), torch.tensor([[0, 1, 0, 1, 1]]))
    result = {name: float(value) for name, value in scores.compute().items()}
    assert result["iou"] == pytest.approx(result["dice"] / (2 - result["dice"]))
    assert result["dice/a"] == result["dice"]


def test_a_case_without_the_class_and_without_a_false_positive_is_not_counted() -> None:
    scores = OverlapScores(["background", "a"])
    scores.update(torch.tensor([[1, 1], [0, 0]]), torch.tensor([[1, 1], [0, 0]]))
    assert float(scores.compute()["dice"]) == 1.0


def test_a_false_positive_on_an_empty_truth_counts_zero() -> None:
    scores = OverlapScores(["background", "a"])
    scores.update(torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1, 1], [0, 0]]))
    assert float(scores.compute()["dice"]) == 0.5


def test_a_class_that_never_appears_is_nan_and_left_out_of_the_mean() -> None:
    scores = OverlapScores(NAMES)
    scores.update(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]))
    result = scores.compute()
    assert math.isnan(result["dice/b"])
    assert float(result["dice"]) == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 1.0), (0.5, 5.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_square_shifted_along_an_axis_is_as_far_as_the_shift(spacing: tuple[float, float], axis: int) -> None:
    shift = [0, 0]
    shift[axis] = 3
    distance = hausdorff95(_square(8, 8), _square(8 + shift[0], 8 + shift[1]), spacing)
    assert distance == pytest.approx(3 * spacing[axis])


def _brute_force(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Every pair of surface voxels; a voxel is on the surface if a neighbour along an axis is outside."""

    def surface(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        padded = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(mask.ndim):
            for step in (-1, 1):
                inside &= np.roll(padded, step, axis)[tuple(slice(1, -1) for _ in range(mask.ndim))]
        return np.argwhere(mask & ~inside) * np.asarray(spacing)

    pairs = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    return float(max(np.quantile(pairs.min(1), 0.95), np.quantile(pairs.min(0), 0.95)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), dim=st.sampled_from([2, 3]))
def test_hausdorff_equals_all_pairs_of_surface_voxels(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((7,) * dim) < 0.4 for _ in range(2))
    spacing = tuple(rng.uniform(0.5, 3, dim))
    if a.any() and b.any():
        assert hausdorff95(a, b, spacing) == pytest.approx(_brute_force(a, b, spacing), rel=1e-9)


def test_a_mask_at_the_border_has_its_border_voxels_as_surface() -> None:
    assert hausdorff95(_square(0, 0, 32), _square(0, 0, 31), (1.0, 1.0)) == pytest.approx(1.0)


def test_both_empty_is_not_counted_and_one_empty_is_the_diagonal() -> None:
    empty = np.zeros((3, 4), dtype=bool)
    assert math.isnan(hausdorff95(empty, empty, (1.0, 1.0)))
    assert hausdorff95(empty, ~empty, (1.0, 1.0)) == 5.0
    metric = HausdorffDistance95(["background", "a"])
    found = torch.ones(1, 3, 4, dtype=torch.long)
    metric.update(torch.cat([found, found * 0]), torch.cat([found * 0, found * 0]), torch.ones(2, 2))
    assert float(metric.compute()["hd95"]) == 5.0
