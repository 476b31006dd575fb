"""Two grids of one case: orientation is exact there and back, spacing keeps the extent."""

from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch

from ics_apps.tasks.segmentation.data.grid import (
    Grid,
    align_mask,
    axis_codes,
    closest_axes,
    coarse_axis,
    median_spacing,
    restore,
)
from ics_apps.tasks.segmentation.data.volume import Volume

WAYS = [(order, flips) for order in permutations(range(3)) for flips in product((1, -1), repeat=3)]


def affine_of(order: tuple[int, ...], flips: tuple[int, ...], spacing: tuple[float, ...] = (1, 2, 3)) -> np.ndarray:
    """File axis i runs along world axis order[i], against it where flips[i] is -1."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = flips[axis] * spacing[axis]
    affine[:3, 3] = (-5, 7, 11)
    return affine


@pytest.mark.parametrize(("order", "flips"), WAYS)
def test_oriented_volumes_are_those_of_nibabel_and_come_back_exactly(
    order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    affine = affine_of(order, flips)
    image = nibabel.Nifti1Image(values, affine)
    grid = Grid(values.shape, image.header.get_zooms(), affine, "RAS")
    canonical = nibabel.as_closest_canonical(image)
    np.testing.assert_array_equal(grid.image(values[None])[0], canonical.get_fdata(dtype=np.float32))
    assert grid.shape == canonical.shape
    assert grid.spacing == canonical.header.get_zooms()
    assert torch.equal(restore(torch.from_numpy(grid.image(values[None]))[None], grid)[0, 0], torch.from_numpy(values))


def test_an_oblique_volume_goes_to_its_closest_axes() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]
    assert closest_axes(turn @ affine_of((2, 0, 1), (1, -1, 1))) == closest_axes(affine_of((2, 0, 1), (1, -1, 1)))


def test_axes_are_named_after_where_they_run_to() -> None:
    assert axis_codes(affine_of((1, 2, 0), (-1, 1, 1))) == "PSR"


def test_planes_and_files_without_an_affine_keep_their_axes() -> None:
    assert not Grid((4, 5, 6), (1, 1, 1), None, "RAS").changes
    assert not Grid((4, 5), (1, 1), affine_of((0, 1, 2), (-1, 1, 1)), "RAS").changes


def test_spacing_keeps_the_extent() -> None:
    grid = Grid((49, 54, 9), (0.5, 0.5, 7.5), spacing=(1.0, 1.0, 1.0))
    assert grid.shape == (24, 27, 68)  # 24.5 rounds to the even number
    np.testing.assert_allclose(np.multiply(grid.shape, grid.spacing), np.multiply((49, 54, 9), (0.5, 0.5, 7.5)))
    assert grid.coarse == 2


def test_spacing_that_the_file_has_changes_nothing() -> None:
    grid = Grid((9, 8), (2.0, 2.0), spacing=(2.0, 2.0))
    values = np.random.default_rng(0).integers(0, 9, (1, 9, 8), dtype=np.int16)
    assert not grid.changes
    assert grid.image(values).dtype == np.int16
    np.testing.assert_array_equal(grid.image(values), values)


def test_logits_come_back_on_the_grid_of_the_file() -> None:
    affine = affine_of((2, 0, 1), (1, -1, 1), (2.0, 2.0, 2.0))
    grid = Grid((6, 8, 10), (2.0, 2.0, 2.0), affine, "RAS", (1.0, 1.0, 1.0))
    # A linear function of the world's coordinates stays one under both ways, away from the edges.
    world = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in (6, 8, 10)], indexing="ij"))
    there = torch.from_numpy(grid.image(world))[None]
    assert there.shape[2:] == grid.shape == (16, 20, 12)
    back = restore(there, grid)[0].numpy()
    assert back.shape == world.shape
    np.testing.assert_allclose(back[:, 1:-1, 1:-1, 1:-1], world[:, 1:-1, 1:-1, 1:-1], atol=1e-5)


def test_labels_come_back_as_they_were_where_the_net_s_grid_is_finer() -> None:
    mask = np.zeros((10, 12, 6), np.uint8)
    mask[3:7, 4:9, 2:4] = 1
    grid = Grid(mask.shape, (1.0, 1.0, 4.0), spacing=(0.5, 0.5, 1.0))
    fine = torch.from_numpy(grid.labels(mask)).long()
    logits = torch.nn.functional.one_hot(fine, 2).movedim(-1, 0)[None].float()
    np.testing.assert_array_equal(restore(logits, grid).argmax(1)[0].numpy(), mask)


def test_without_a_grid_nothing_is_restored() -> None:
    values = torch.rand(1, 2, 3, 4)
    assert restore(values, None) is values
    assert restore(values, Grid((3, 4), (1.0, 1.0))) is values


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 3), None), ((1, 1, 3.1), 2), ((5, 1, 1), 0), ((4, 4, 1), None), ((1, 9), 1)]
)
def test_one_axis_of_more_than_three_times_the_finest_is_coarse(spacing: tuple[float, ...], axis: int | None) -> None:
    assert coarse_axis(spacing) == axis


def test_median_spacing_of_thick_slices_is_their_tenth_percentile() -> None:
    spacings = [(0.5, 0.5, z) for z in (5.0, 6.0, 7.0, 8.0, 9.0)]
    assert median_spacing(spacings, [(100, 100, 10)] * 5) == pytest.approx((0.5, 0.5, 5.4))
    assert median_spacing(spacings, [(20, 20, 10)] * 5) == (0.5, 0.5, 7.0)  # not few slices: the median
    assert median_spacing([(1.0, 1.0)], [(9, 9)]) == (1.0, 1.0)


@pytest.mark.parametrize("way", WAYS[::7])
def test_a_mask_along_other_axes_is_laid_on_its_image(way: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    values = np.random.default_rng(0).integers(0, 5, (4, 5, 6), dtype=np.uint8)
    affine = affine_of((0, 1, 2), (1, 1, 1))
    image = nibabel.Nifti1Image(values, affine)
    turned = image.as_reoriented(np.column_stack([way[0], way[1]]))
    mask = Volume(np.asarray(turned.dataobj), turned.header.get_zooms(), turned.affine)
    aligned = align_mask(mask, values.shape, affine)
    np.testing.assert_array_equal(aligned.values, values)
    assert aligned.spacing == (1.0, 2.0, 3.0)


def test_a_mask_of_other_voxels_is_left_alone() -> None:
    affine = affine_of((0, 1, 2), (1, 1, 1))
    moved = affine.copy()
    moved[0, 3] += 1
    mask = Volume(np.zeros((4, 5, 6), np.uint8), (1, 2, 3), moved)
    assert align_mask(mask, (4, 5, 6), affine) is mask
