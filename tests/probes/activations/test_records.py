"""Several readings that are one: of a cell's time steps, and of the ranks' parts of a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.probes.activations.records import Record, merge


def record(
    values: list[float], numel: int = 0, *, index: int = 0, tag: str = "", call: int = 0, **scalars: float
) -> Record:
    array = np.array(values, np.float32)
    channel = np.arange(len(values), dtype=np.int32) % 2
    return Record(index, tag, call, "float32", numel or len(values), 2, array, channel, array[::2] * 10, scalars)


def test_what_is_not_of_one_layer_tag_and_call_stays_apart() -> None:
    parts = [record([1.0]), record([2.0], index=1), record([3.0], tag="fake"), record([4.0], call=1)]
    assert merge(parts) == parts


def test_parts_read_in_full_become_the_joint_sample_with_its_channels_and_gradient() -> None:
    (joint,) = merge([record([1.0, 2.0, 3.0]), record([4.0])])
    assert joint.values.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert joint.channel is not None
    assert joint.channel.tolist() == [0, 1, 0, 0]
    assert joint.gradient.tolist() == [10.0, 30.0, 40.0]
    assert joint.numel == 4


@given(small=st.integers(1, 50), large=st.integers(1, 5000), read=st.integers(1, 100))
def test_a_part_weighs_as_its_output_does(small: int, large: int, read: int) -> None:
    outputs = [small, large]
    parts = [record([float(place)] * min(read, numel), numel) for place, numel in enumerate(outputs)]
    (joint,) = merge(parts)
    share = np.count_nonzero(joint.values == 0) / len(joint.values)
    assert share == pytest.approx(small / (small + large), abs=1 / len(joint.values))


def test_scalars_are_averaged_by_size_over_the_parts_that_have_them() -> None:
    parts = [record([0.0] * 3, gap=1.0, noise=math.nan), record([0.0], gap=5.0, noise=2.0), record([0.0])]
    (joint,) = merge(parts)
    assert joint.scalars == {"gap": 2.0, "noise": 2.0}


def test_a_part_without_values_changes_nothing() -> None:
    (joint,) = merge([record([1.0, 2.0]), record([], 0)])
    assert joint.values.tolist() == [1.0, 2.0]


def test_parts_of_different_width_have_no_channels_in_common() -> None:
    other = record([1.0, 1.0])
    other.channels = 3
    (joint,) = merge([record([0.0, 0.0]), other])
    assert (joint.channel, joint.channels) == (None, 1)
