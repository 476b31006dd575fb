"""Which elements are read."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ics_apps.probes.activations.sampling import first_tensor, locate, read

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, size=st.integers(1, 300), turn=st.integers(0, 10_000))
def test_a_contiguous_sample_is_numpys_strided_slice(shape: list[int], size: int, turn: int) -> None:
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    where = locate(x, size, turn)
    indices = where.offset + where.stride * np.arange(where.count)
    assert read(x, where).tolist() == x.numpy().ravel()[indices].tolist()
    assert where.count <= size or where.stride == 1


@settings(max_examples=60, deadline=None)
@given(shape=shapes, size=st.integers(1, 300), turn=st.integers(0, 10_000))
def test_the_stride_shares_no_factor_with_any_axis(shape: list[int], size: int, turn: int) -> None:
    where = locate(torch.zeros(shape), size, turn)
    assert all(math.gcd(where.stride, length) == 1 for length in shape if length > 1)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(20, 400), turn=st.integers(0, 50), axis=st.integers(0, 3), layout=st.integers(0, 3))
def test_each_value_is_read_from_the_channel_that_is_named(size: int, turn: int, axis: int, layout: int) -> None:
    x = torch.zeros(3, 4, 5, 6)
    layouts = [x, x.contiguous(memory_format=torch.channels_last), x[:, :, 1:4, ::2], x.permute(3, 0, 2, 1)]
    x = layouts[layout]
    x += torch.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
    where = locate(x, size, turn, axis)
    assert read(x, where).tolist() == where.channel_index().tolist()


def test_channels_last_is_read_in_memory_order_and_sees_every_channel() -> None:
    x = torch.randn(8, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    where = locate(x, 4096, axis=1)
    memory = x.permute(0, 2, 3, 1).reshape(-1)
    assert where.dense
    assert torch.equal(read(x, where), memory[where.offset :: where.stride][: where.count])
    assert np.bincount(where.channel_index(), minlength=64).min() >= 60


def test_a_dense_sample_is_a_view_and_costs_no_copy() -> None:
    x = torch.randn(4, 4, 64, 64)
    assert read(x, locate(x, 100)).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_gaps_in_memory_are_never_read() -> None:
    x = torch.full((8, 10), float("nan"))
    x[:, 3:7] = 1.0
    assert read(x[:, 3:7], locate(x[:, 3:7], 16)).tolist() == [1.0] * locate(x[:, 3:7], 16).count


def test_turns_move_the_offset_and_leave_the_global_generator_alone() -> None:
    x = torch.zeros(100_000)
    state = torch.get_rng_state()
    offsets = {locate(x, 1000, turn).offset for turn in range(20)}
    assert len(offsets) == 20
    assert torch.equal(torch.get_rng_state(), state)


@dataclass
class Output:
    ids: torch.Tensor
    hidden: torch.Tensor


Pair = namedtuple("Pair", ["mask", "values"])


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(3),
        (torch.ones(3), torch.zeros(3)),
        {"ids": torch.arange(3), "out": torch.ones(3)},
        Output(torch.arange(3), torch.ones(3)),
        Pair(torch.zeros(3, dtype=torch.bool), [torch.ones(3)]),
        nn.utils.rnn.pack_sequence([torch.ones(3)]),
    ],
)
def test_the_first_floating_tensor_is_found(output: object) -> None:
    found = first_tensor(output)
    assert found is not None
    assert found.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "output",
    [None, 3.0, "text", torch.arange(3), torch.empty(0), torch.ones(3).to_sparse(), torch.ones(2, device="meta"), []],
)
def test_what_cannot_be_read_is_passed_over(output: object) -> None:
    assert first_tensor(output) is None


def test_tensors_of_a_function_transform_are_passed_over() -> None:
    seen = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(first_tensor(x))
        return 2 * x

    torch.func.vmap(double)(torch.ones(3, 2))
    assert seen == [None]
