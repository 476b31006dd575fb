from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ics_apps.tasks.segmentation.metrics import HausdorffDistance95, hausdorff95
from ics_apps.tasks.segmentation.metrics.surface import bounding_box, surfaces
from ics_apps.tasks.segmentation.targets import IGNORE


def _square(row: int, column: int, size: int = 10, shape: tuple[int, int] = (32, 32)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[row : row + size, column : column + size] = True
    return mask


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


def _pairs(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Distances between all surface voxels."""
    edges = [np.argwhere(mask & ~_inner(mask)) * np.asarray(spacing) for mask in (a, b)]
    return np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded, inside = np.pad(mask, 1), np.ones_like(mask)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return inside


def test_a_square_shifted_by_three_steps_of_two() -> None:
    both = surfaces(_square(8, 8), _square(11, 8), (2.0, 1.0))
    assert both.hausdorff() == both.hausdorff(0.95) == 6
    assert both.average() == pytest.approx(2.5556, abs=5e-5)
    assert both.within(6.0) == 1
    assert both.within(5.9) < 1


@settings(max_examples=25, deadline=None)
@given(distance=st.integers(1, 12), step=st.sampled_from([0.1, 0.3, 0.7, 1.0, 5.0]))
def test_two_single_voxels_are_their_distance_apart_and_the_tolerance_includes_it(distance: int, step: float) -> None:
    a, b = _square(3, 3, 1), _square(3, 3 + distance, 1)
    both = surfaces(a, b, (1.0, step))
    expected = distance * step
    assert [both.hausdorff(), both.hausdorff(0.95), both.average()] == pytest.approx([expected] * 3)
    assert both.within(round(expected, 6)) == 1
    assert both.within(0.999 * expected) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), dim=st.sampled_from([2, 3]), size=st.integers(3, 7))
def test_cropping_to_both_masks_changes_no_distance(seed: int, dim: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [np.zeros((size + 9,) * dim, dtype=bool) for _ in range(2)]
    for mask in masks:
        start = rng.integers(0, 10, dim)
        mask[tuple(slice(at, at + size) for at in start)] = rng.random((size,) * dim) < 0.5
        mask[tuple(start)] = True
    spacing = tuple(rng.uniform(0.3, 4, dim))
    pairs, both = _pairs(*masks, spacing), surfaces(*masks, spacing)
    assert np.allclose(np.sort(both.there), np.sort(pairs.min(1)), rtol=1e-12)
    assert np.allclose(np.sort(both.back), np.sort(pairs.min(0)), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_distances_are_symmetric_ordered_and_scale_with_the_spacing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((8, 8)) < 0.3 for _ in range(2))
    a[0, 0] = b[1, 2] = True
    both, turned, doubled = surfaces(a, b, (1.0, 2.0)), surfaces(b, a, (1.0, 2.0)), surfaces(a, b, (2.0, 4.0))
    assert both.average() == pytest.approx(turned.average())
    assert both.hausdorff(0.95) == turned.hausdorff(0.95)
    assert both.average() <= both.hausdorff()
    assert both.hausdorff(0.95) <= both.hausdorff()
    assert doubled.hausdorff() == pytest.approx(2 * both.hausdorff())
    assert doubled.within(3.0) == both.within(1.5)


def test_a_mask_and_itself_are_nowhere_apart() -> None:
    both = surfaces(_square(8, 8), _square(8, 8), (2.0, 1.0))
    assert (both.hausdorff(), both.average(), both.within(0.0)) == (0, 0, 1)


def test_the_box_stays_within_the_image() -> None:
    assert bounding_box(_square(0, 25, 7), margin=3) == (slice(0, 10), slice(22, 32))
    assert bounding_box(_square(4, 5, 2), margin=[0, 1]) == (slice(4, 6), slice(4, 8))


def test_ignored_positions_are_in_neither_surface() -> None:
    truth = torch.zeros(1, 8, 8, dtype=torch.long)
    truth[0, 2:4, 2:4] = 1
    predicted = truth.clone()
    predicted[0, 7, 7] = 1
    truth[0, 6:] = IGNORE
    metric = HausdorffDistance95(["background", "a"])
    metric.update(predicted, truth, torch.ones(1, 2))
    assert float(metric.compute()["hd95"]) == 0


def test_labels_have_distances_too() -> None:
    a, b = (torch.from_numpy(_square(8, column))[None, None] for column in (8, 11))
    metric = HausdorffDistance95(["a", "b"], multi_label=True)
    metric.update(torch.cat([a, b], 1), torch.cat([b, b], 1), torch.tensor([[1.0, 2.0]]))
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "hd95": 3.0, "hd95/a": 6.0, "hd95/b": 0.0
    }  # fmt: skip
