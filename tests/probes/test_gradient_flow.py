"""Norms and signal-to-noise ratios of gradients with known answers; what the gradients of gain and shift sum up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ics_apps.norms import list_norms, make_norm, norm_entry
from ics_apps.probes.gradient_flow import GradientFlow, LayerFlow, gradient_flow, signal_to_noise
from ics_apps.probes.preserve import ProbeError


def drawn(count: int, entries: int, signal: float, seed: int = 0) -> list[Tensor]:
    """Gradients of unit noise in each entry, around `signal` in each."""
    generator = torch.Generator().manual_seed(seed)
    return list(signal + torch.randn(count, entries, generator=generator, dtype=torch.float64))


def taken_in(model: nn.Module, gradients: Sequence[Sequence[Tensor]], sample: int = 4096) -> list[LayerFlow]:
    flow = GradientFlow(model, sample=sample)
    for of_step in gradients:
        flow.add(dict(zip(model.parameters(), of_step, strict=True)))
    return flow.layers()


def test_the_ratio_of_two_gradients_is_worked_out_by_hand() -> None:
    # Mean (3, 0), variances 0 and 2: (9 - 2 / 2) / 2.
    assert signal_to_noise([torch.tensor([3.0, 1.0]), torch.tensor([3.0, -1.0])]) == 4.0


@pytest.mark.parametrize("signal", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("count", [2, 8])
def test_the_ratio_is_that_of_the_distribution_however_many_gradients_there_are(signal: float, count: int) -> None:
    entries, repeats = 400, 200
    ratios = [signal_to_noise(drawn(count, entries, signal, seed)) for seed in range(repeats)]
    # Per root of entries, |m|^2 deviates by sqrt(4 signal^2 / n + 2 / n^2) and s by sqrt(2 / (n - 1)).
    deviation = math.sqrt(4 * signal**2 / count + 2 / count**2 + (signal**2 + 1 / count) ** 2 * 2 / (count - 1))
    # 1 / s is too large on average by 2 / ((n - 1) entries).
    bias = 3 * (signal**2 + 1 / count) / ((count - 1) * entries)
    assert sum(ratios) / repeats == pytest.approx(signal**2, abs=bias + 4 * deviation / math.sqrt(entries * repeats))


@given(st.floats(1e-3, 1e3), st.integers(2, 9))
def test_the_ratio_does_not_depend_on_the_unit_of_the_gradients(unit: float, count: int) -> None:
    gradients = drawn(count, 5, 0.5)
    assert signal_to_noise([unit * g for g in gradients]) == pytest.approx(signal_to_noise(gradients), rel=1e-9)


def test_gradients_that_are_all_the_same_have_no_ratio() -> None:
    assert math.isnan(signal_to_noise([torch.ones(3)] * 4))
    with pytest.raises(ValueError, match="Got 1 gradients"):
        signal_to_noise([torch.ones(3)])


def test_streamed_gradients_have_the_norm_and_ratio_of_all_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Linear(4, 5))
    generator = torch.Generator().manual_seed(0)
    steps = [[1 + torch.randn(p.shape, generator=generator) for p in model.parameters()] for _ in range(8)]
    flows = taken_in(model, steps)
    assert [(flow.layer, flow.order) for flow in flows] == [("0", 0), ("2", 1)]
    for flow, own in zip(flows, (slice(0, 2), slice(2, 4)), strict=True):
        joined = [torch.cat([g.flatten() for g in step[own]]) for step in steps]
        assert flow.grad_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in joined) / 8), rel=1e-5)
        assert flow.snr == pytest.approx(signal_to_noise(joined), rel=1e-5)


def test_a_large_mean_does_not_cancel_the_noise() -> None:
    model = nn.Linear(40, 10, bias=False).double()
    steps = [[g.reshape(10, 40)] for g in drawn(8, 400, 3000.0)]
    [flow] = taken_in(model, steps)
    assert flow.snr == pytest.approx(signal_to_noise([step[0] for step in steps]), rel=1e-3)


def test_a_sample_counts_for_the_parameter_that_it_is_taken_from() -> None:
    model = nn.Linear(1000, 100)  # 100,000 weights, of which 500 are read, and 100 biases
    generator = torch.Generator().manual_seed(0)
    # The signal is in the biases only: |E g|^2 = 100 * 50^2, noise of 100,100 entries.
    steps = [
        [torch.randn(100, 1000, generator=generator), 50 + torch.randn(100, generator=generator)] for _ in range(8)
    ]
    [flow] = taken_in(model, steps, sample=500)
    exact = signal_to_noise([torch.cat([w.flatten(), b]) for w, b in steps])
    assert exact == pytest.approx(100 * 50**2 / 100_100, rel=0.02)
    # The noise of 500 entries over 8 steps is known to sqrt(2 / (500 * 7)).
    assert flow.snr == pytest.approx(exact, rel=4 * math.sqrt(2 / 3500))
    norm = sum(float(g.double().square().sum()) for step in steps for g in step) / 8
    assert flow.grad_norm == pytest.approx(math.sqrt(norm), rel=1e-5)


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    model = nn.Linear(3, 2, bias=False)
    steps = [[g.reshape(2, 3).float()] for g in drawn(5, 6, 1.0)]
    broken = [[torch.full((2, 3), math.nan)], *steps[:2], [torch.full((2, 3), math.inf)], *steps[2:]]
    assert taken_in(model, broken) == taken_in(model, steps)


def test_without_gradients_a_norm_is_zero_and_without_steps_it_is_not_defined() -> None:
    flow = GradientFlow(nn.Linear(2, 2))
    assert math.isnan(flow.layers()[0].grad_norm)
    for _ in range(2):
        flow.add()
    [layer] = flow.layers()
    assert layer.grad_norm == 0
    assert math.isnan(layer.snr)


def test_gradients_are_taken_from_the_parameters_and_unscaled() -> None:
    model = nn.Linear(2, 1, bias=False)
    flow = GradientFlow(model)
    for value in (3.0, 5.0):
        model.weight.grad = 8 * torch.tensor([[value, 0.0]])
        flow.add(scale=8.0)
    [layer] = flow.layers()
    assert layer.grad_norm == pytest.approx(math.sqrt((9 + 25) / 2))
    assert layer.snr == pytest.approx((16 - 2 / 2) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_number_format_of_gradients_is_taken(dtype: torch.dtype) -> None:
    model = nn.Linear(64, 64, bias=False).to(dtype)
    steps = [[g.reshape(64, 64).to(dtype)] for g in drawn(4, 64 * 64, 1.0)]
    [flow] = taken_in(model, steps)
    exact = math.sqrt(sum(float(step[0].double().square().sum()) for step in steps) / 4)
    assert flow.grad_norm == pytest.approx(exact, rel=1e-5)
    assert flow.snr == pytest.approx(signal_to_noise([step[0] for step in steps]), rel=1e-4)


def test_other_memory_formats_and_sparse_gradients_are_taken() -> None:
    conv = nn.Conv2d(4, 4, 3, bias=False)
    steps = [[g.reshape(4, 4, 3, 3).float()] for g in drawn(3, 144, 1.0)]
    last = [[g.contiguous(memory_format=torch.channels_last)] for [g] in steps]
    assert taken_in(conv, last)[0].snr == pytest.approx(taken_in(conv, steps)[0].snr, rel=1e-5)
    table = nn.Embedding(5, 3)
    dense = [[g.reshape(5, 3).float()] for g in drawn(3, 15, 1.0)]
    assert taken_in(table, [[g.to_sparse(1)] for [g] in dense]) == taken_in(table, dense)


def test_layers_are_the_modules_that_hold_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), parametrizations.weight_norm(nn.Linear(2, 2)))
    model[0].requires_grad_(False)
    flows = taken_in(model, [[torch.zeros_like(p) for p in model.parameters()]])
    assert [(flow.layer, flow.order) for flow in flows] == [("1", 1), ("2", 2)]
    own = GradientFlow(model, model[1].parameters())
    own.add()
    assert [flow.layer for flow in own.layers()] == ["1"]


def test_what_cannot_be_measured_is_told() -> None:
    with pytest.raises(ProbeError, match="No parameter"):
        GradientFlow(nn.Linear(1, 1).requires_grad_(False))
    with pytest.raises(ValueError, match="sample is 0"):
        GradientFlow(nn.Linear(1, 1), sample=0)


def test_several_batches_are_measured_and_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    batches = torch.randn(5, 8, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flows = gradient_flow(model, [lambda x=x: model(x).square().mean() for x in batches])  # type: ignore[misc]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    gradients = [torch.autograd.grad(model(x).square().mean(), list(model[2].parameters())) for x in batches]
    joined = [torch.cat([g.flatten() for g in of_batch]) for of_batch in gradients]
    assert flows[2].snr == pytest.approx(signal_to_noise(joined), rel=1e-4)


CHANNELS = 4
SHAPES = {0: (6, CHANNELS), 1: (6, CHANNELS, 5), 2: (6, CHANNELS, 3, 2), "tokens": (6, 5, CHANNELS)}
OPTIONS = {"group": {"num_groups": 2}, "ghost_batch": {"batch_size": 3}}


def with_gain_and_shift() -> list[tuple[str, object]]:
    """Norms of activations that end in x * weight + bias, an entry of each for every channel."""
    pairs: list[tuple[str, object]] = []
    for name in list_norms():
        entry = norm_entry(name)
        # The gain and shift of batch_channel stand between its two norms.
        if name == "batch_channel" or entry.acts_on_weight or entry.needs_condition or entry.contains_activation:
            continue
        for dim in SHAPES:
            if dim not in entry.dims:
                continue
            layer = make_norm({"name": name, **OPTIONS.get(name, {})}, CHANNELS, dim)
            found = dict(layer.named_parameters(recurse=False))
            if all(key in found and found[key].shape == (CHANNELS,) for key in ("weight", "bias")):
                pairs.append((name, dim))
    return pairs


PAIRS = with_gain_and_shift()


def test_most_norms_have_a_gain_and_a_shift() -> None:
    assert {"batch", "instance", "group", "layer_c", "layer_chw", "switchable", "ghost_batch"} <= {n for n, _ in PAIRS}


@pytest.mark.parametrize(("name", "dim"), PAIRS, ids=[f"{name}-{dim}" for name, dim in PAIRS])
def test_the_gradient_of_a_shift_is_the_sum_of_what_comes_from_above(name: str, dim: int | str) -> None:
    """dL/dbeta = sum of dL/dy and dL/dgamma = sum of dL/dy * xhat, over the batch and all positions."""
    layer = make_norm({"name": name, **OPTIONS.get(name, {})}, CHANNELS, dim).double()
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, upstream = random(*SHAPES[dim]) * 2 + 0.7, random(*SHAPES[dim])

    def output(gain: Tensor, shift: Tensor) -> Tensor:
        layer.load_state_dict({**state, "weight": gain, "bias": shift})
        torch.manual_seed(0)
        y: Tensor = layer(x)
        return y

    state = {key: value.clone() for key, value in layer.state_dict().items()}
    zero, one = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    # What the gain multiplies; global_response adds x beside it.
    normalized = (output(one, zero) - output(zero, zero)).detach()
    (output(random(CHANNELS), random(CHANNELS)) * upstream).sum().backward()

    axes = (0, 1) if dim == "tokens" else (0, *range(2, x.ndim))
    torch.testing.assert_close(bias.grad, upstream.sum(axes), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weight.grad, (upstream * normalized).sum(axes), rtol=1e-12, atol=1e-12)
