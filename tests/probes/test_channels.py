"""Channel axes and dead channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ics_apps.probes.channels import DEAD_AFTER, ChannelAxis, SilentChannels
from ics_apps.probes.sampling import locate
from ics_apps.probes.taps import Kind, Layer


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


def update(silent: SilentChannels, x: torch.Tensor) -> int:
    where = locate(x, x.numel(), axis=1)
    return silent.update(("relu", 0), x.flatten().numpy() != 0, where)


def test_a_channel_that_is_always_zero_is_dead_once_enough_was_read() -> None:
    x = torch.ones(2, 3, 25)
    x[:, 1] = 0
    silent = SilentChannels()
    assert DEAD_AFTER == 100
    assert [update(silent, x) for _ in range(3)] == [0, 1, 1]


def test_one_active_value_brings_a_channel_back() -> None:
    dead = torch.zeros(4, 1, 50)
    alive = dead.clone()
    alive[3, 0, 49] = 1
    silent = SilentChannels()
    assert [update(silent, x) for x in (dead, alive, dead)] == [1, 0, 1]


def test_a_channel_that_was_not_read_is_not_called_dead() -> None:
    x = torch.zeros(1, 1000, 1)
    where = locate(x, 100, axis=1)
    silent = SilentChannels()
    counts = [silent.update(("relu", 0), np.zeros(where.count, bool), where) for _ in range(DEAD_AFTER)]
    assert counts[0] == 0
    assert counts[-1] == where.count


def test_the_counts_survive_a_weights_only_file(tmp_path) -> None:
    silent = SilentChannels()
    update(silent, torch.zeros(2, 3, 25))
    torch.save(silent.state_dict(), tmp_path / "silent.pt")
    restored = SilentChannels()
    restored.load_state_dict(torch.load(tmp_path / "silent.pt", weights_only=True))
    assert update(restored, torch.zeros(2, 3, 25)) == 3
