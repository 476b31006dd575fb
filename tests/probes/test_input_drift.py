"""Drift of layer inputs on a fixed batch: none without a change of the net, the known one for a known change."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ics_apps.probes.activations.drift import gaussian_kl
from ics_apps.probes.input_drift import InputDrift, LayerDrift
from ics_apps.probes.preserve import ProbeError

DISTANCES = ("drift_kl", "drift_w1", "drift_mean", "reference_kl", "reference_w1", "reference_mean")


def distances(row: LayerDrift) -> list[float]:
    return [getattr(row, name) for name in DISTANCES]


class Noisy(nn.Module):
    """Dropout, batch norm, noise of numpy and of the standard library."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.act(self.norm(self.conv(x))))
        y: Tensor = self.head(h.flatten(1) + np.random.rand() + random.gauss(0.0, 1.0))
        return y


def test_a_net_that_does_not_change_has_no_drift_at_all() -> None:
    model, batch, drift = Noisy(), torch.randn(8, 1, 6, 6), InputDrift()
    first = drift.measure(model, lambda: model(batch))
    assert all(math.isnan(value) for row in first for value in distances(row))
    torch.rand(3), np.random.rand(), random.gauss(0.0, 1.0)  # the run goes on and draws random numbers
    for _ in range(2):
        rows = drift.measure(model, lambda: model(batch))
        assert [row.layer for row in rows] == ["conv", "act", "head"]
        assert all(distances(row) == [0.0] * 6 for row in rows)


def test_the_model_and_the_random_numbers_go_on_as_if_nothing_had_been_measured() -> None:
    model, batch = Noisy(), torch.randn(8, 1, 6, 6)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    InputDrift().measure(model, lambda: model(batch))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_figures_are_those_of_the_input_before_it_is_written_over() -> None:
    x = torch.linspace(-3, 3, 101)[:, None]
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)  # type: ignore[union-attr]
    [row] = InputDrift(layers="activation").measure(model, lambda: model(x))
    assert (row.mean, row.std) == pytest.approx((0.0, float(x.std(correction=0))), abs=1e-6)
    assert (row.q15, row.q50, row.q85) == pytest.approx((-2.1, 0.0, 2.1), abs=1e-6)


@given(shift=st.floats(-5, 5), scale=st.floats(0.2, 5))
def test_a_shift_and_a_scale_give_the_distances_of_their_formulas(shift: float, scale: float) -> None:
    x = torch.linspace(-1, 1, 129)[:, None]
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    lower, drift = model[0], InputDrift(layers="1")

    def measured(weight: float, bias: float) -> LayerDrift:
        lower.weight.data.fill_(weight)
        lower.bias.data.fill_(bias)
        [row] = drift.measure(model, lambda: model(x))
        return row

    first, second = measured(1.0, 0.0), measured(scale, shift)
    v = first.std**2
    assert second.drift_kl == pytest.approx(float(gaussian_kl(0.0, v, shift, v * scale**2)), rel=1e-4, abs=1e-6)
    assert second.drift_mean == pytest.approx(abs(shift) / first.std, rel=1e-4, abs=1e-6)
    third = measured(scale, shift + 1)
    assert third.drift_w1 == pytest.approx(1 / second.std, rel=1e-3)
    back = measured(1.0, 0.0)
    assert distances(back)[3:] == pytest.approx([0.0] * 3, abs=1e-6)


def test_of_several_calls_the_first_is_read_and_the_order_is_that_of_the_calls() -> None:
    late, early = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleDict({"late": late, "early": early})
    early.weight.data.zero_()
    early.bias.data.zero_()

    def forward() -> None:
        h = early(torch.ones(1, 2))
        late(early(h) + 7)

    rows = InputDrift().measure(model, forward)
    assert [(row.layer, row.order, row.mean) for row in rows] == [("early", 0, 1.0), ("late", 1, 7.0)]


def test_half_precision_inputs_and_inputs_by_name_are_read() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y: Tensor = self.layer(input=x)
            return y

    model = Named()
    [row] = InputDrift().measure(model, lambda: model(torch.full((4, 2), 1.5, dtype=torch.bfloat16)))
    assert (row.mean, row.std) == (1.5, 0.0)


def test_an_input_that_is_not_finite_has_no_figures_and_is_not_remembered() -> None:
    model, drift = nn.Sequential(nn.Linear(1, 1)), InputDrift()
    values = [torch.full((4, 1), math.nan), torch.zeros(4, 1), torch.zeros(4, 1)]
    rows = [drift.measure(model, lambda x=x: model(x))[0] for x in values]  # type: ignore[misc]
    assert math.isnan(rows[0].mean)
    assert math.isnan(rows[1].drift_w1)
    assert rows[2].drift_w1 == 0.0


def test_a_saved_measurement_is_the_reference_of_the_next_one() -> None:
    model, batch, drift = Noisy(), torch.randn(8, 1, 6, 6), InputDrift()
    drift.measure(model, lambda: model(batch))
    resumed = InputDrift()
    resumed.load_state_dict(drift.state_dict())
    assert all(distances(row) == [0.0] * 6 for row in resumed.measure(model, lambda: model(batch)))


def test_what_cannot_be_measured_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ProbeError, match="No layer was called"):
        InputDrift().measure(model, lambda: None)
    with pytest.raises(ValueError, match="did you mean"):
        InputDrift(layers="Liner").measure(model, lambda: model(torch.ones(1, 2)))
    with pytest.raises(ValueError, match="max_layers is 0"):
        InputDrift(max_layers=0)
    with pytest.raises(ValueError, match="sample_size is 63"):
        InputDrift(sample_size=63)
