"""Resampling: known answers, and what no resampling may change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ics_apps.tasks.segmentation.data.resample import resize, resize_labels

sizes = st.lists(st.integers(1, 9), min_size=2, max_size=3)


@settings(deadline=None)
@given(old=sizes, new=st.data())
def test_a_constant_stays_that_constant(old: list[int], new: st.DataObject) -> None:
    shape = new.draw(st.lists(st.integers(1, 9), min_size=len(old), max_size=len(old)))
    coarse = new.draw(st.sampled_from([None, *range(len(old))]))
    values = torch.full((2, *old), 3.5)
    result = resize(values, shape, coarse)
    assert result.shape == (2, *shape)
    torch.testing.assert_close(result, torch.full((2, *shape), 3.5))


def test_a_ramp_stays_a_ramp_inside() -> None:
    ramp = torch.arange(12, dtype=torch.float64)[None]
    finer = resize(ramp, [24])[0]
    # Voxel i of 24 lies at (i + 1/2) / 2 - 1/2 of the 12; beyond the outer centres the value stays.
    wanted = ((torch.arange(24, dtype=torch.float64) + 0.5) / 2 - 0.5).clamp(0, 11)
    torch.testing.assert_close(finer, wanted)


def test_slices_along_the_coarse_axis_are_repeated_and_not_mixed() -> None:
    values = torch.arange(3.0).reshape(1, 1, 1, 3).expand(1, 4, 4, 3)
    result = resize(values, [8, 8, 6], coarse=2)
    assert torch.equal(result[0, 0, 0], torch.tensor([0.0, 0, 1, 1, 2, 2]))
    assert len(resize(values, [8, 8, 6]).unique()) > 3


def test_in_plane_values_are_those_of_the_plane_alone() -> None:
    values = torch.rand(2, 5, 6, 3, generator=torch.Generator().manual_seed(0))
    volume = resize(values, [7, 4, 3], coarse=2)
    planes = torch.stack([resize(values[..., k], [7, 4]) for k in range(3)], dim=-1)
    torch.testing.assert_close(volume, planes)


def test_labels_of_a_grid_twice_as_fine_and_back_are_the_same() -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 3, 255], np.uint8), (6, 5, 4))
    finer = resize_labels(labels, (18, 15, 12))
    assert finer.dtype == np.uint8
    np.testing.assert_array_equal(resize_labels(finer, (6, 5, 4)), labels)


def test_labels_hold_no_value_that_was_not_there() -> None:
    labels = np.random.default_rng(0).choice(np.array([1, 9, 200], np.int32), (7, 9))
    assert set(np.unique(resize_labels(labels, (5, 12)))) <= {1, 9, 200}


@pytest.mark.parametrize("value", [0, 4])
def test_an_edge_at_half_a_voxel_goes_to_the_smaller_value(value: int) -> None:
    labels = np.array([[value, 5 - value]], np.uint8)
    assert resize_labels(labels, (1, 1)).tolist() == [[min(value, 5 - value)]]
