"""Where activations saturate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ics_apps.probes.activations.saturation import SHARE, tails_of

ACTIVATIONS = [
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softsign(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Hardswish(),
    nn.ELU(),
    nn.ELU(alpha=2.0),
    nn.CELU(alpha=1.5),
    nn.SELU(),
    nn.Softplus(beta=2.0),
    nn.LogSigmoid(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
]


def slopes(activation: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    # The last point: ELU and SELU are steepest at 0 from below.
    x = torch.cat([torch.linspace(-12, 12, 40_001, dtype=torch.float64), torch.tensor([-1e-12])]).requires_grad_()
    y = activation(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return x.detach(), y.detach(), slope


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_beyond_the_thresholds_the_derivative_is_below_five_per_cent_of_its_maximum(activation: nn.Module) -> None:
    tails = tails_of(activation)
    assert tails is not None
    x, y, slope = slopes(activation)
    value = x if tails.side == "input" else y
    # A hair's breadth inside the tail: the input thresholds are rounded to five digits.
    saturated = (value <= tails.low - 1e-4) | (value >= tails.high + 1e-4)
    if tails.side == "output":
        saturated = (value <= tails.low) | (value >= tails.high)
    assert saturated.any()
    assert slope[saturated].abs().max() <= SHARE * slope.max() + 1e-9


@pytest.mark.parametrize(
    "activation", [a for a in ACTIVATIONS if not isinstance(a, (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish))], ids=repr
)
def test_between_the_thresholds_a_monotone_activation_still_passes_gradient(activation: nn.Module) -> None:
    tails = tails_of(activation)
    assert tails is not None
    _, y, slope = slopes(activation)
    inside = (y > tails.low + 1e-6) & (y < tails.high - 1e-6)
    assert slope[inside].abs().min() >= SHARE * slope.max() * 0.99


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Mish()], ids=repr)
def test_the_tail_of_a_smooth_activation_starts_where_the_slope_falls_below_five_per_cent(
    activation: nn.Module,
) -> None:
    tails = tails_of(activation)
    assert tails is not None
    x, _, slope = slopes(activation)
    passing = x[(slope.abs() >= SHARE * slope.max()) & (x < 0)]
    assert float(passing[0]) == pytest.approx(tails.low, abs=1e-2)


def test_relu6_saturates_at_six_and_not_at_its_zeros() -> None:
    tails = tails_of(nn.ReLU6())
    assert tails is not None
    assert (tails.low, tails.high) == (-math.inf, 6.0)


def test_activations_of_timm_are_known_by_their_names() -> None:
    activations = pytest.importorskip("timm.layers.activations")
    assert tails_of(activations.Swish()) == tails_of(nn.SiLU())


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LeakyReLU(), nn.Softmax(dim=1), nn.Linear(1, 1)], ids=repr)
def test_saturation_is_not_defined_for_unbounded_activations_and_other_layers(module: nn.Module) -> None:
    assert tails_of(module) is None
