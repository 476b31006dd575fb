"""Slices through the loss, against functions that are known along every line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ics_apps.norms import make_norm
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


def test_the_slice_of_a_net_whose_filters_are_longer_and_do_the_same_is_the_same():
    short, long = net(), net()
    long[0].weight.data.mul_(10.0)  # the norm behind takes the length away
    slices = []
    for model in (short, long):
        model[1].eps = 0.0
        with Objective(model, loss_of(model)) as objective:
            slices.append(slice_1d(objective, filter_normalised_direction(objective), np.linspace(-1, 1, 5)))
    assert slices[0] == pytest.approx(slices[1], rel=1e-10)


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
