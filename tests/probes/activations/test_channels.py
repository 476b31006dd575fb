"""Channel axes, dead channels and constant ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ics_apps.probes.activations.channels import STREAK, ChannelAxis, ChannelStreaks
from ics_apps.probes.selection import Kind, Layer


def find(*steps: tuple[nn.Module, Kind, tuple[int, ...]]) -> int | None:
    axis, found = ChannelAxis(), None
    for module, kind, shape in steps:
        found = axis.find(Layer(("layer",), kind, module), torch.zeros(shape))
    return found


@pytest.mark.parametrize(
    ("module", "kind", "shape", "axis"),
    [
        (nn.Conv1d(1, 4, 1), "conv", (2, 4, 9), 1),
        (nn.Linear(3, 4), "linear", (2, 9, 4), 2),
        (nn.LayerNorm(4), "norm", (2, 7, 9, 4), 3),
        (nn.BatchNorm1d(4), "norm", (2, 4, 9), 1),
        (nn.GroupNorm(2, 4), "norm", (2, 4, 9, 9), 1),
        (nn.ReLU(), "activation", (2, 4, 9, 9), 1),
        (nn.ReLU(), "activation", (2, 4), 1),
    ],
)
def test_the_channel_axis_of_a_layer(module: nn.Module, kind: Kind, shape: tuple[int, ...], axis: int) -> None:
    assert find((module, kind, shape)) == axis


def test_an_activation_has_its_channels_where_the_layer_before_it_had_them() -> None:
    assert find((nn.Linear(3, 4), "linear", (2, 9, 4)), (nn.GELU(), "activation", (2, 9, 4))) == 2
    assert find((nn.Conv1d(3, 9, 1), "conv", (2, 9, 4)), (nn.GELU(), "activation", (2, 9, 4))) == 1


def test_a_vector_has_no_channels() -> None:
    assert find((nn.ReLU(), "activation", (7,))) is None


KEY = ("relu", "", 0)


def update(streaks: ChannelStreaks, *channels: list[float]) -> tuple[int, int]:
    """Count in one sample, given by its values in each channel."""
    index = np.repeat(np.arange(len(channels)), [len(values) for values in channels])
    dead, constant = streaks.update([KEY], [np.concatenate(channels).astype(np.float32)], [index], [len(channels)])
    return int(dead[0]), int(constant[0])


def test_a_channel_that_is_always_zero_is_dead_once_enough_was_read() -> None:
    streaks, active = ChannelStreaks(), [float(k) for k in range(50)]
    assert STREAK == 100
    assert [update(streaks, active, [0.0] * 50) for _ in range(3)] == [(0, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize("value", [1.0, math.nan, -math.inf])
def test_one_active_value_brings_a_channel_back(value: float) -> None:
    streaks, dead = ChannelStreaks(), [0.0] * 200
    assert [update(streaks, sample)[0] for sample in (dead, [*dead, value], dead)] == [1, 0, 1]


def test_a_channel_that_was_not_read_keeps_its_streak() -> None:
    streaks = ChannelStreaks()
    update(streaks, [0.0] * 100, [5.0] * 101)
    assert update(streaks, [], []) == (1, 1)
    assert update(ChannelStreaks(), [], [], []) == (0, 0)


def test_a_channel_that_does_not_vary_is_constant_once_enough_was_compared() -> None:
    streaks = ChannelStreaks()
    assert [update(streaks, [3.0] * 51, [3.0, *range(50)])[1] for _ in range(3)] == [0, 1, 1]


def test_the_level_of_a_constant_channel_may_move_from_sample_to_sample() -> None:
    streaks = ChannelStreaks()
    assert [update(streaks, [level] * 51)[1] for level in (3.0, -2.0)] == [0, 1]


@pytest.mark.parametrize(("last", "constant"), [(3.00001, 1), (3.0002, 0), (0.0, 0), (math.nan, 0), (math.inf, 0)])
def test_a_value_that_differs_by_more_than_rounding_ends_constancy(last: float, constant: int) -> None:
    assert update(ChannelStreaks(), [*[3.0] * 200, last]) == (0, constant)
    assert update(ChannelStreaks(), [last, *[3.0] * 200]) == (0, constant)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_channel_without_finite_values_is_neither_dead_nor_constant(value: float) -> None:
    assert update(ChannelStreaks(), [value] * 300) == (0, 0)


def test_one_value_a_sample_cannot_show_that_a_channel_is_constant() -> None:
    streaks = ChannelStreaks()
    assert [update(streaks, [3.0 + k]) for k in range(300)][-1] == (0, 0)


def test_dead_and_constant_follow_each_other_without_a_rest() -> None:
    streaks, samples = ChannelStreaks(), ([3.0] * 101, [0.0] * 99, [0.0], [3.0] * 100, [3.0, 3.0])
    assert [update(streaks, values) for values in samples] == [(0, 1), (0, 0), (1, 0), (0, 0), (0, 1)]


def test_counts_stop_before_they_overflow_and_take_one_byte_a_channel() -> None:
    streaks = ChannelStreaks()
    assert [update(streaks, [0.0] * 1000, [2.0] * 1000) for _ in range(3)] == [(1, 1)] * 3
    (_, _, _, kept) = streaks.state_dict()[0]
    assert kept.element_size() * kept.numel() == 2


def test_another_number_of_channels_begins_anew() -> None:
    streaks = ChannelStreaks()
    update(streaks, [0.0] * 100)
    assert update(streaks, [0.0] * 99, [0.0] * 99) == (0, 0)


def test_the_streaks_survive_a_weights_only_file(tmp_path) -> None:
    streaks, restored = ChannelStreaks(), ChannelStreaks()
    update(streaks, [0.0] * 60, [2.0] * 60)
    torch.save(streaks.state_dict(), tmp_path / "streaks.pt")
    restored.load_state_dict(torch.load(tmp_path / "streaks.pt", weights_only=True))
    assert update(restored, [0.0] * 40, [2.0] * 42) == (1, 1)
