"""Patches: where they come from, that image and mask stay together, and that they can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ics_apps.tasks.segmentation.data.augment import NO_AUGMENTATION, Augmentation
from ics_apps.tasks.segmentation.data.cases import Case, Cases
from ics_apps.tasks.segmentation.data.patches import PatchDataset, PatchSampler, cut

GEOMETRY = Augmentation(contrast=0.0, brightness=0.0, noise=0.0)


def case_of(image: np.ndarray, mask: np.ndarray, spacing: Sequence[float] | None = None) -> Case:
    """A case without normalization: mean 0, std 1."""
    channels = len(image)
    zero, one = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return Case("case", mask.shape, tuple(spacing or (1.0,) * mask.ndim), zero, one, image, mask.astype(np.uint8))


def random_case(shape: tuple[int, ...], seed: int = 0, channels: int = 1) -> Case:
    rng = np.random.default_rng(seed)
    return case_of(rng.normal(size=(channels, *shape)).astype(np.float32), rng.integers(0, 3, shape))


def smooth_mask(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Discs of a radius of 6 voxels: edges are short against the area."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    mask = np.zeros(shape, dtype=np.uint8)
    for _ in range(6):
        centre = np.array([rng.uniform(0, n) for n in shape]).reshape(-1, *[1] * len(shape))
        mask |= (((axes - centre) ** 2).sum(0) < 36).astype(np.uint8)
    return mask


def dataset(shape: tuple[int, ...], patch: tuple[int, ...], options: Augmentation, seed: int = 0) -> PatchDataset:
    return PatchDataset(Cases([random_case(shape, i) for i in range(3)]), patch, options, seed)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in ("image", "mask"))


@pytest.mark.parametrize("shape", [(20, 30), (9, 12, 11)])
def test_without_augmentation_a_patch_is_an_exact_crop(shape: tuple[int, ...]) -> None:
    case = random_case(shape, channels=2)
    patch = (5, 7, 4)[: len(shape)]
    item = PatchDataset(Cases([case]), patch, NO_AUGMENTATION)[0, 0]
    assert case.image is not None
    assert case.mask is not None
    image, mask = case.image, case.mask
    windows = np.lib.stride_tricks.sliding_window_view(image, patch, axis=tuple(range(1, len(shape) + 1)))
    same = (windows == item["image"].numpy().reshape(2, *[1] * len(shape), *patch)).all(
        axis=tuple(range(len(shape) + 1, 2 * len(shape) + 1))
    )
    starts = np.argwhere(same.all(0))
    assert len(starts) == 1
    where = tuple(slice(s, s + p) for s, p in zip(starts[0], patch, strict=True))
    np.testing.assert_array_equal(item["mask"].numpy(), mask[where])


@pytest.mark.parametrize("shape", [(16, 21), (10, 12, 9)])
def test_cut_equals_reflected_grid_sample_of_the_whole_case(shape: tuple[int, ...]) -> None:
    case = random_case(shape, channels=2)
    assert case.image is not None
    assert case.mask is not None
    axes, patch = len(shape), (9, 13, 7)[: len(shape)]
    rng = np.random.default_rng(1)
    for _ in range(10):
        matrix = np.linalg.qr(rng.normal(size=(axes, axes)))[0] * rng.uniform(0.8, 1.25)
        centre = [rng.uniform(0, n - 1) for n in shape]
        image, mask = cut(case, case.image, case.mask, centre, matrix, patch)
        offsets = np.stack(np.meshgrid(*[np.arange(p) - (p - 1) / 2 for p in patch], indexing="ij"), -1)
        points = offsets @ matrix.T + np.array(centre)
        grid = torch.from_numpy(((2 * points + 1) / np.array(shape) - 1)[..., ::-1].copy()).float()[None]
        options: dict[str, Any] = {"padding_mode": "reflection", "align_corners": False}
        whole = F.grid_sample(torch.from_numpy(case.image)[None], grid, mode="bilinear", **options)[0]
        labels = F.grid_sample(torch.from_numpy(case.mask).float()[None, None], grid, mode="nearest", **options)[0, 0]
        torch.testing.assert_close(image, whole, atol=1e-4, rtol=0)
        # A point half-way between two voxels may go to either.
        assert (mask != labels).float().mean() < 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), three=st.booleans())
def test_image_and_mask_stay_aligned(seed: int, three: bool) -> None:
    shape = (24, 24, 24) if three else (60, 50)
    mask = smooth_mask(shape, seed)
    case = case_of(mask[None].astype(np.float32), mask)
    item = PatchDataset(Cases([case]), (16,) * len(shape), GEOMETRY, seed)[0, 0]
    image, labels = item["image"][0], item["mask"]
    sure = (image < 0.05) | (image > 0.95)
    assert torch.equal(image[sure] > 0.5, labels[sure] == 1)


def test_case_smaller_than_the_patch_is_mirrored_at_its_edges() -> None:
    case = case_of(np.array([[[1.0, 2.0, 3.0]]], np.float32), np.array([[0, 1, 2]]))
    item = PatchDataset(Cases([case]), (1, 9), NO_AUGMENTATION)[0, 0]
    assert item["image"].flatten().tolist() == [3, 2, 1, 1, 2, 3, 3, 2, 1]
    assert item["mask"].flatten().tolist() == [2, 1, 0, 0, 1, 2, 2, 1, 0]


def test_turn_is_rigid_in_millimetres() -> None:
    # A disc in mm on 1 x 2 mm voxels stays the same under any turn about its centre.
    y, x = np.mgrid[0:64, 0:32]
    mask = ((y - 31.5) ** 2 + (2 * (x - 15.5)) ** 2 < 15**2).astype(np.uint8)
    case = case_of(mask[None].astype(np.float32), mask, spacing=(1.0, 2.0))
    options = Augmentation(scale=(1.0, 1.0), contrast=0.0, brightness=0.0, noise=0.0)
    patches = PatchDataset(Cases([case]), (64, 32), options)
    for index in range(5):
        assert (patches[0, index]["mask"].numpy() != mask).mean() < 0.02


def test_anisotropic_volume_turns_in_the_fine_plane_only() -> None:
    image = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (6, 20, 20)).copy()[None]
    case = case_of(image, np.zeros((6, 20, 20)), spacing=(5.0, 1.0, 1.0))
    options = Augmentation(scale=(1.0, 1.0), flip=False, contrast=0.0, brightness=0.0, noise=0.0)
    item = PatchDataset(Cases([case]), (6, 10, 10), options)[0, 0]
    torch.testing.assert_close(item["image"], torch.from_numpy(image[..., :10, :10]), atol=1e-4, rtol=0)


def test_scale_above_one_shows_more() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (64, 64)).copy()[None]
    case = case_of(ramp, np.zeros((64, 64)))
    options = Augmentation(rotate=0.0, scale=(2.0, 2.0), flip=False, contrast=0.0, brightness=0.0, noise=0.0)
    row = PatchDataset(Cases([case]), (8, 8), options)[0, 2]["image"][0, 0]
    # The median, because the patch may reach beyond the edge and be mirrored there.
    assert row.diff().abs().median().item() == pytest.approx(2.0, abs=1e-4)


def test_same_seed_epoch_and_index_give_the_same_patch_whatever_the_batch() -> None:
    patches, again = (dataset((20, 20), (8, 8), Augmentation(), seed=4) for _ in range(2))
    batch = patches.__getitems__([(2, 0), (2, 1), (2, 2)])
    for index in (2, 0, 1):
        assert equal(again[2, index], {name: values[index] for name, values in batch.items()})


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_another_epoch_or_index_gives_another_patch(other: tuple[int, int]) -> None:
    patches = dataset((20, 20), (8, 8), Augmentation())
    assert not equal(patches[0, 0], patches[other])


def test_another_seed_gives_another_patch() -> None:
    first, second = (dataset((20, 20), (8, 8), Augmentation(), seed) for seed in (0, 1))
    assert not equal(first[0, 0], second[0, 0])


def test_patches_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dataset((20, 20), (8, 8), Augmentation())[0, 0]
    assert torch.equal(before, torch.get_rng_state())


def test_patches_are_normalized_by_the_case() -> None:
    case = case_of(np.full((1, 8, 8), 7, np.uint8), np.zeros((8, 8)))
    case.mean, case.std = np.array([5.0], np.float32), np.array([4.0], np.float32)
    item = PatchDataset(Cases([case]), (4, 4), NO_AUGMENTATION)[0, 0]
    assert item["image"].unique().tolist() == [0.5]
    assert item["image"].dtype == torch.float32
    assert item["mask"].dtype == torch.int64


@given(patches=st.integers(1, 50), size=st.integers(1, 8), replicas=st.integers(1, 4))
def test_processes_share_an_epoch_in_full_batches_without_overlap(patches: int, size: int, replicas: int) -> None:
    samplers = [PatchSampler(patches, size, replicas, rank) for rank in range(replicas)]
    drawn = [list(sampler) for sampler in samplers]
    assert all(len(keys) == len(sampler) for keys, sampler in zip(drawn, samplers, strict=True))
    assert len({len(keys) for keys in drawn}) == 1
    assert len(drawn[0]) % size == 0
    indices = sorted(index for keys in drawn for _, index in keys)
    assert indices == list(range(len(indices)))
    assert patches <= len(indices) < patches + size * replicas


def test_two_processes_see_the_halves_of_the_batches_of_one() -> None:
    one = list(PatchSampler(8, 4))
    left, right = (list(PatchSampler(8, 2, 2, rank)) for rank in (0, 1))
    assert one == left[:2] + right[:2] + left[2:] + right[2:]


def sparse_case(shape: tuple[int, ...], seed: int = 0) -> Case:
    """Two foreground classes of very unlike sizes, and none in most of the case."""
    mask = np.zeros(shape, np.uint8)
    mask[(slice(2, 6),) * len(shape)] = 1
    mask[tuple(n - 1 for n in shape)] = 2
    return case_of(np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32), mask)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), patch=st.integers(3, 9), three=st.booleans())
def test_forced_patches_hold_foreground_whatever_the_turn(seed: int, patch: int, three: bool) -> None:
    shape = (30, 28, 26) if three else (40, 44)
    patches = PatchDataset(Cases([sparse_case(shape)]), (patch,) * len(shape), GEOMETRY, seed, foreground=1.0)
    assert all((patches[seed, index]["mask"] > 0).any() for index in range(6))


def test_the_share_of_forced_patches_is_exact_and_spread_evenly() -> None:
    shape = (400, 400)  # by chance a patch holds foreground in less than one case of a thousand
    patches = PatchDataset(Cases([sparse_case(shape)]), (4, 4), NO_AUGMENTATION, 3, foreground=0.25)
    held = [bool((patches[0, index]["mask"] > 0).any()) for index in range(16)]
    assert held == [False, False, False, True] * 4


def test_a_rare_class_is_drawn_as_often_as_a_common_one() -> None:
    patches = PatchDataset(Cases([sparse_case((40, 40))]), (5, 5), NO_AUGMENTATION, 0, foreground=1.0)
    rare = sum(bool((patches[0, index]["mask"] == 2).any()) for index in range(200))
    assert 70 < rare < 130  # binomial, n = 200, p = 1/2: 4 standard deviations


def test_forced_patches_are_exact_crops_and_a_function_of_seed_epoch_and_index() -> None:
    case = sparse_case((20, 20))
    one, two = (PatchDataset(Cases([case]), (6, 6), NO_AUGMENTATION, 5, foreground=0.5) for _ in range(2))
    batch = one.__getitems__([(1, index) for index in range(4)])
    for index in (3, 0, 2, 1):
        assert equal(two[1, index], {name: values[index] for name, values in batch.items()})
    assert case.image is not None
    assert np.isin(batch["image"].numpy(), case.image).all()


def test_unforced_patches_are_those_without_oversampling() -> None:
    plain, some = (PatchDataset(Cases([sparse_case((20, 20))]), (6, 6), Augmentation(), 5, f) for f in (0.0, 0.5))
    assert equal(plain[0, 0], some[0, 0])
    assert not equal(plain[0, 1], some[0, 1])


def test_a_case_without_foreground_gives_patches_all_the_same() -> None:
    case = case_of(np.zeros((1, 9, 9), np.float32), np.zeros((9, 9)))
    assert not PatchDataset(Cases([case]), (4, 4), Augmentation(), foreground=1.0)[0, 0]["mask"].any()


def test_voxels_of_a_large_class_are_bounded_and_spread_over_it() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[50:] = 1
    (found,) = Cases([case_of(np.zeros((1, 200, 200), np.float32), mask)]).voxels(0)
    assert len(found) == 8192
    assert found[0] == 50 * 200
    assert found[-1] >= 200 * 200 - 4
    assert set(np.diff(found)) == {3, 4}


def test_labels_that_overlap_are_cut_together() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (3, 12, 12), dtype=np.uint8)
    case = Case("a", (12, 12), (1.0, 1.0), np.zeros(1, np.float32), np.ones(1, np.float32))
    case.image, case.mask = mask[:1].astype(np.float32), mask
    for options in (NO_AUGMENTATION, GEOMETRY):
        item = PatchDataset(Cases([case]), (12, 12), options, foreground=1.0)[0, 0]
        assert item["mask"].shape == (3, 12, 12)
        assert item["mask"].dtype == torch.int64
    item = PatchDataset(Cases([case]), (12, 12), NO_AUGMENTATION)[0, 0]
    np.testing.assert_array_equal(item["mask"].numpy(), mask)
