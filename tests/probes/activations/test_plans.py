"""Outputs read by plans that were made for their form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ics_apps.probes.activations.arena import Arena
from ics_apps.probes.activations.plans import Plan
from ics_apps.probes.activations.sampling import locate, read

SHAPE = (5, 7, 11, 13)


def planned(x: Tensor, turn: int = 3, batch: int = 0) -> tuple[Plan, Arena]:
    plan, arena = Plan(0, "", 0, x, 1, 64, 16, batch), Arena(x.device)
    plan.prepare(arena, turn)
    return plan, arena


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_values_are_those_at_the_places_of_the_turn(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE).to(dtype).contiguous(memory_format=layout)
    plan, arena = planned(x)
    slot = plan.read(x).slot
    (chunk,) = arena.fetch([])[0]
    expected = read(x, locate(x, 64, 3, 1)).float()
    assert chunk[slot.start : slot.start + slot.count].tolist() == expected.tolist()


def test_a_view_with_gaps_is_read_too() -> None:
    x = torch.randn(10, 7, 11, 13)[::2]
    plan, arena = planned(x)
    slot = plan.read(x).slot
    assert arena.fetch([])[0][0][: slot.count].tolist() == read(x, locate(x, 64, 3, 1)).tolist()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_is_read_whatever_its_layout(layout: torch.memory_format) -> None:
    x = torch.randn(SHAPE)
    plan, arena = planned(x)
    reading = plan.read(x)
    assert reading.gradient is None
    gradient = torch.randn(SHAPE).contiguous(memory_format=layout)
    plan.read_gradient(gradient)
    assert reading.gradient is not None
    (chunk,) = arena.fetch([])[0]
    values = chunk[reading.gradient.start : reading.gradient.start + reading.gradient.count]
    assert values.tolist() == read(gradient, locate(gradient, 16, 3)).tolist()


def test_a_batch_norm_has_pairs_and_others_have_none() -> None:
    x = torch.randn(SHAPE)
    assert planned(x)[0].read(x).pairs is None
    plan, arena = planned(x, batch=5)
    pairs = plan.read(x).pairs
    assert pairs is not None
    assert (pairs.batch, pairs.per_channel) == (5, 11 * 13)
    values = arena.fetch([])[0][0][pairs.slot.start : pairs.slot.start + pairs.slot.count]
    assert values.tolist() == pairs.grid.read(x).flatten().tolist()


@pytest.mark.parametrize(
    "other",
    [
        torch.randn(4, 7, 11, 13),
        torch.randn(SHAPE).contiguous(memory_format=torch.channels_last),
        torch.randn(SHAPE).double(),
        torch.randn(SHAPE, device="meta"),
    ],
)
def test_a_plan_fits_outputs_of_one_form_only(other: Tensor) -> None:
    plan = planned(torch.randn(SHAPE))[0]
    assert plan.fits(torch.randn(SHAPE))
    assert not plan.fits(other)
