"""How far optimizers turn weights whose length does not matter, against angles and walks that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ics_apps.probes.rotation import Rotation, StepRule, angle, describe_weight_decay


@given(st.floats(1e-9, math.pi - 1e-6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_an_angle_is_exact_and_does_not_depend_on_lengths(turn: float, a: float, b: float) -> None:
    before = torch.tensor([a, 0.0], dtype=torch.float64)
    after = torch.tensor([b * math.cos(turn), b * math.sin(turn)], dtype=torch.float64)
    assert angle(before.split(1), after.split(1)) == pytest.approx(turn, rel=1e-9)


def test_the_angle_to_nothing_is_not_defined() -> None:
    assert math.isnan(angle([torch.zeros(2)], [torch.ones(2)]))


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, object]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.001, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.001, "momentum": 0.9, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99)}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_random_gradients_turn_a_weight_as_far_as_predicted(name: str) -> None:
    """A weight of 512 entries, gradients at random, orthogonal to it and in proportion to 1 / |W|."""
    kind, options = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(F.normalize(torch.randn(512, generator=generator, dtype=torch.float64), dim=0))
    optimizer = kind([weight], **options)  # type: ignore[call-arg]
    rule = StepRule.of(optimizer, weight)
    turns = []
    for _ in range(int(8 * rule.equilibrium_steps) + 1000):
        g = torch.randn(512, generator=generator, dtype=torch.float64)
        w = weight.detach()
        weight.grad = (g - (g @ w) / (w @ w) * w) / w.norm()
        before = w.clone()
        optimizer.step()
        turns.append(angle([before], [weight]))
    steady = torch.tensor(turns[-1000:])
    # One step's angle has a relative deviation of 1 / sqrt(2 * 512), and steps share the filter's memory of about ten;
    # the prediction is for small steps, up to a relative lambda * eta + angle^2.
    error = 4 * math.sqrt(20 / (2 * 512 * 1000)) + 1e-3 + rule.equilibrium_rotation**2
    assert float(steady.mean()) == pytest.approx(rule.equilibrium_rotation, rel=error)


def test_known_values_of_the_equilibrium() -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def rule(optimizer: torch.optim.Optimizer) -> StepRule:
        return StepRule.of(optimizer, weight)

    plain = rule(torch.optim.SGD([weight], lr=0.1, weight_decay=0.01))
    assert plain.equilibrium_rotation == pytest.approx(math.sqrt(0.002))
    assert plain.equilibrium_steps == pytest.approx(500)
    assert plain.effective_lr(2.0) == pytest.approx(0.025)
    adamw = rule(torch.optim.AdamW([weight], lr=0.1, weight_decay=0.01, betas=(0.8, 0.9)))
    assert adamw.equilibrium_rotation == pytest.approx(math.sqrt(0.002 * 0.2 / 1.8))
    assert adamw.effective_lr(2.0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("kind", "options", "has_rate"),
    [
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.01}, True),
        (torch.optim.SGD, {"lr": 0.1}, True),
        (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5}, True),
        (torch.optim.RMSprop, {"lr": 0.1, "weight_decay": 0.1}, False),
    ],
    ids=["L2 in Adam", "no weight decay", "dampening", "RMSprop"],
)
def test_nothing_is_predicted_where_nothing_is_known(
    kind: type[torch.optim.Optimizer], options: dict[str, object], has_rate: bool
) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    rule = StepRule.of(kind([weight], **options), weight)  # type: ignore[call-arg]
    assert math.isnan(rule.equilibrium_rotation)
    assert math.isnan(rule.equilibrium_steps)
    assert math.isnan(rule.effective_lr(2.0)) != has_rate


def test_each_group_of_an_optimizer_has_its_rule() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "weight_decay": 0.5}], lr=0.1)
    assert (StepRule.of(optimizer, a).lr, StepRule.of(optimizer, a).weight_decay) == (1.0, 0.0)
    assert (StepRule.of(optimizer, b).lr, StepRule.of(optimizer, b).weight_decay) == (0.1, 0.5)
    with pytest.raises(ValueError, match="does not move"):
        StepRule.of(optimizer, nn.Parameter(torch.ones(1)))


def test_weight_decay_is_put_into_words_for_each_case() -> None:
    def row(decay: float, expected: float, steps: float) -> Rotation:
        return Rotation("conv.weight", 2.0, 0.1, 0.01, expected, decay, steps)

    assert "shrinks the function" in describe_weight_decay([])
    known, none, unknown = row(0.01, 0.003, 5e4), row(0.0, math.nan, math.nan), row(0.1, math.nan, math.nan)
    assert describe_weight_decay([known] * 20) == (
        "Weight decay 0.01 on these 20 weights does not shrink the function: it sets their rotation per step to 0.003 "
        "rad, reached after about 50,000 steps; now 0.01 rad (median)."
    )
    assert describe_weight_decay([none]).startswith("No weight decay acts on conv.weight, so steps make its norm grow")
    assert "an angle that is not known here" in describe_weight_decay([unknown])
    assert describe_weight_decay([known, none, unknown]).count(". ") == 2
