"""Batch norm by absolute deviations: known answers, and gradients away from the kinks."""

from __future__ import annotations

import math

import pytest
import torch

from ics_apps.norms import NormError, make_norm
from ics_apps.norms.engine import blocked

EPS = 1e-5


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.7


def build(p, channels=3, dim=2, **options):
    norm = make_norm({"name": "lp_batch", "p": p, **options}, channels, dim).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, channels))
        norm.bias.copy_(torch.linspace(-0.3, 0.4, channels))
    return norm


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_l2_is_batch_norm():
    x, norm, batch = draw(4, 3, 5, 2), build("l2"), make_norm("batch", 3).double()
    batch.load_state_dict({"weight": norm.weight, "bias": norm.bias}, strict=False)
    same(norm(x), batch(x))


def test_l1_of_gaussian_values_is_near_batch_norm():
    n = 10_000
    x = draw(n, 1)
    ratio = make_norm("batch", 1, 0).double()(x).std() / make_norm("lp_batch", 1, 0).double()(x).std()
    # Of n Gaussian values both spreads estimate sigma; their ratio deviates from 1 by sqrt((pi - 3) / (2 n)).
    assert abs(ratio - 1) < 5 * math.sqrt((math.pi - 3) / (2 * n))


@pytest.mark.parametrize("dim", [0, 2, "tokens"])
def test_linf_divides_by_the_largest_deviation_times_its_factor(dim):
    x = draw(*{0: (6, 3), 2: (4, 3, 5, 2), "tokens": (4, 5, 3)}[dim])
    norm = build("linf", dim=dim)
    rows = x.movedim(-1 if dim == "tokens" else 1, 0).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    factor = (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(rows.shape[1]))
    largest = centred.abs().max(1, keepdim=True).values
    expected = centred / (largest * factor + EPS) * norm.weight[:, None] + norm.bias[:, None]
    found = norm(x)
    same(found.movedim(-1 if dim == "tokens" else 1, 0).flatten(1), expected)


def test_one_and_minus_one_are_their_own_l1_norm_but_for_the_gaussian_factor():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    y = make_norm({"name": "lp_batch", "eps": 1e-15}, 1, 0).double()(x)
    same(y, x * math.sqrt(2 / math.pi))


@pytest.mark.parametrize("p", ["l1", "l2", "linf"])
def test_running_values_average_the_mean_and_the_spread_that_divided(p):
    x, norm = draw(4, 3, 5, 2), build(p, momentum=0.25)
    y = norm(x).detach()
    mean = x.mean((0, 2, 3))
    spread = ((x[0, :, 0, 0] - mean) / ((y[0, :, 0, 0] - norm.bias) / norm.weight)).detach()
    same(norm.running_mean, 0.25 * mean)
    same(norm.running_scale, 0.75 + 0.25 * spread)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("p", ["l1", "l2", "linf"])
def test_at_momentum_1_evaluation_of_the_same_batch_is_training(p):
    x, norm = draw(4, 3, 5, 2), build(p, momentum=1.0)
    same(norm(x), norm.eval()(x))


@pytest.mark.parametrize("block", [1, 2**18])
@pytest.mark.parametrize("p", ["l1", "l2", "linf"])
def test_gradients_are_right_away_from_kinks(p, block, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", block)
    x, norm = draw(4, 3, 3, 2).requires_grad_(), build(p)
    deviations = (x - x.mean((0, 2, 3), keepdim=True)).abs().detach().movedim(1, 0).flatten(1).sort(1).values
    # Steps of 1e-6 cross no kink: no value is that near the mean, and no second value that near the largest.
    assert deviations[:, 0].min() > 1e-3
    assert (deviations[:, -1] - deviations[:, -2]).min() > 1e-3
    call = lambda x, weight, bias: torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias))


def test_other_powers_are_refused():
    with pytest.raises(NormError, match="p must be 'l1', 'l2' or 'linf', got 'l3'"):
        make_norm({"name": "lp_batch", "p": "l3"}, 3)


@pytest.mark.parametrize("p", ["l1", "l2", "linf"])
def test_one_value_a_channel_is_refused_and_moves_nothing(p):
    norm = build(p, dim=0)
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        norm(draw(1, 3))
    assert norm.num_batches_tracked == 0
    assert norm.running_scale.tolist() == [1, 1, 1]
