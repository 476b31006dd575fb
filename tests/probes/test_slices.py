"""Slices through the loss, against functions that are known along every line."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from ics_apps.norms import make_norm, norm_context
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.slices import filter_normalised_direction, slice_1d, slice_2d


def net(norm: str = "batch") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), make_norm(norm, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    ).double()


X = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(model: nn.Module):
    return lambda: model(X).square().mean()


def test_a_slice_through_a_quadratic_is_its_parabola():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    w, d = model.weight.detach().clone(), torch.randn(1, 3, dtype=torch.float64)
    at = np.linspace(-2, 2, 9)
    with Objective(model, lambda: model(x).square().mean()) as objective:
        found = slice_1d(objective, [d], at)
    y, along = x @ w.T, x @ d.T
    a, b, c = along.square().mean(), 2 * (y * along).mean(), y.square().mean()
    assert found == pytest.approx(np.array([float(a * t**2 + b * t + c) for t in at]), rel=1e-12)


def test_a_plane_holds_both_lines():
    model = net("none")
    with Objective(model, loss_of(model)) as objective:
        d, e = (filter_normalised_direction(objective, seed) for seed in (0, 1))
        plane = slice_2d(objective, d, e, [-0.5, 0.0, 0.5], [0.0, 1.0])
        assert np.array_equal(plane[:, 0], slice_1d(objective, d, [-0.5, 0.0, 0.5]))
        assert np.array_equal(plane[1], slice_1d(objective, e, [0.0, 1.0]))
        assert plane[1, 0] == objective.value()


def test_filters_are_as_long_as_those_of_the_weights_and_vectors_do_not_move():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), make_norm("batch", 3), nn.ConvTranspose2d(3, 5, 2))
    with Objective(model, lambda: model(torch.ones(2, 2, 8, 8)).square().sum()) as objective:
        direction = dict(zip(objective.names, filter_normalised_direction(objective), strict=True))
    weights = dict(model.named_parameters())
    assert torch.allclose(direction["0.weight"].square().sum((1, 2, 3)), weights["0.weight"].square().sum((1, 2, 3)))
    assert torch.allclose(direction["2.weight"].square().sum((0, 2, 3)), weights["2.weight"].square().sum((0, 2, 3)))
    for name in ("0.bias", "1.weight", "1.bias", "2.bias"):
        assert not direction[name].any(), name


def stretched(model: nn.Module) -> nn.Module:
    """One filter ten times as long; the norm behind it takes the length away."""
    model[0].weight.data[1] *= 10.0
    return model


def sliced(model: nn.Module, direction: Callable[[Objective], list[Tensor]]) -> np.ndarray:
    model[1].eps = 0.0
    with Objective(model, loss_of(model)) as objective:
        return slice_1d(objective, direction(objective), np.linspace(-1, 1, 5))


def plain_direction(objective: Objective) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn_like(parameter) * (parameter.ndim > 1) for parameter in objective.parameters]


def test_the_slice_of_a_net_with_a_longer_filter_that_does_the_same_is_the_same():
    assert sliced(stretched(net()), filter_normalised_direction) == pytest.approx(
        sliced(net(), filter_normalised_direction), rel=1e-10
    )


def test_in_a_direction_that_is_not_normalised_the_longer_filter_makes_the_loss_look_flatter():
    short, long = sliced(net(), plain_direction), sliced(stretched(net()), plain_direction)
    assert short[2] == pytest.approx(long[2], rel=1e-10)
    assert abs(short - long).max() > 0.1 * short[2]


def test_layers_of_which_one_gives_length_to_the_other_have_the_same_slice():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    second = copy.deepcopy(first)
    for parameter in second[0].parameters():
        parameter.data.mul_(8.0)
    second[4].weight.data.div_(8.0)
    assert sliced(second, filter_normalised_direction) == pytest.approx(
        sliced(first, filter_normalised_direction), rel=1e-12
    )


def test_what_lies_inside_a_norm_does_not_move():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), make_norm({"name": "conditional_batch", "num_classes": 3}, 4))
    table = model[1].conditional.table.weight
    nn.init.ones_(table)

    def loss() -> Tensor:
        with norm_context(label=torch.tensor([0, 1])):
            return model(torch.ones(2, 1, 5, 5)).square().sum()

    with Objective(model, loss) as objective:
        directions = dict(zip(objective.parameters, filter_normalised_direction(objective), strict=True))
    assert not directions[table].any()
    assert directions[model[0].weight].any()


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_of_a_weight_under_weight_norm_the_directions_move_and_the_lengths_do_not(kind):
    model = nn.Sequential(weight_norm(kind(2, 4, 3)))
    with Objective(model, lambda: model(torch.ones(1, 2, 5, 5)).square().sum()) as objective:
        found = dict(zip(objective.names, filter_normalised_direction(objective), strict=True))
    moving = [name for name, direction in found.items() if direction.any()]
    assert moving == ["0.parametrizations.weight.original1"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("wrap", [lambda layer: layer, spectral_norm])
def test_filters_of_a_transposed_convolution_are_its_output_channels(wrap, groups):
    layer = wrap(nn.ConvTranspose2d(4, 6, 2, groups=groups))
    with Objective(layer, lambda: layer(torch.ones(1, 4, 5, 5)).square().sum()) as objective:
        direction, *_ = (d for d in filter_normalised_direction(objective) if d.ndim > 1)
        weight, *_ = (p for p in objective.parameters if p.ndim > 1)

    def lengths(x: Tensor) -> Tensor:
        return x.detach().view(groups, 4 // groups, 6 // groups, 4).square().sum((1, 3))

    torch.testing.assert_close(lengths(direction), lengths(weight))


def test_a_seed_gives_one_direction():
    model = net()
    with Objective(model, loss_of(model)) as objective:
        first, again, other = (filter_normalised_direction(objective, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_weights_are_back_while_the_objective_is_still_open():
    model = net()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with Objective(model, loss_of(model)) as objective:
        slice_1d(objective, filter_normalised_direction(objective), [1.0])
        assert all(torch.equal(p.detach(), q) for p, q in zip(model.parameters(), before, strict=True))


def test_where_the_loss_is_not_finite_it_is_infinite():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    with Objective(model, lambda: model(torch.ones(1, 1)).sum().log()) as objective:
        assert slice_1d(objective, [torch.ones(1, 1)], [0.0, -2.0]).tolist() == [0.0, math.inf]


def test_a_model_of_vectors_has_no_filters():
    model = nn.LayerNorm(4)
    objective = Objective(model, lambda: model(torch.randn(2, 4)).square().sum())
    with objective, pytest.raises(ProbeError, match="no weight with filters"):
        filter_normalised_direction(objective)
