"""Layers without statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from ics_apps.norms import make_norm, norm_entry
from ics_apps.norms.engine import blocked

SHAPES = {0: (3, 4), 1: (3, 4, 5), 2: (3, 4, 3, 2), 3: (3, 4, 2, 3, 2), "tokens": (3, 5, 4)}
NAMES = ("affine", "dyt", "derf")
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def scaled_and_shifted(x, state):
    """On arrays (B, C, S)."""
    return state["weight"][:, None] * x + state["bias"][:, None]


def dyt(x, state):
    return scaled_and_shifted(np.tanh(state["alpha"][0] * x), state)


def derf(x, state):
    return scaled_and_shifted(np.vectorize(math.erf)(state["alpha"][0] * x + state["shift"][0]), state)


FORMULAS = {"affine": scaled_and_shifted, "dyt": dyt, "derf": derf}


def draw(shape, seed=0, level=0.7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + level


def as_array(x, axes):
    return (x.transpose(1, 2) if axes == "tokens" else x.flatten(2) if axes else x.unsqueeze(-1)).detach().numpy()


def build(name, axes):
    """A layer in float64 whose parameters all differ from their start."""
    layer = make_norm(name, 4, axes).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return layer


@pytest.fixture(params=["whole", "blocks"])
def route(request, monkeypatch):
    """Run small inputs by the formula as it is, and by blocks of one sample as large inputs are."""
    if request.param == "blocks":
        monkeypatch.setattr(blocked, "BLOCK", 1)
    return request.param


def test_none_is_the_identity_without_parameters():
    layer = make_norm("none", 4)
    x = torch.randn(2, 4, 3, 3)
    assert isinstance(layer, torch.nn.Identity)
    assert layer(x) is x


def test_affine_starts_as_the_identity():
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(make_norm("affine", 4)(x), x)


def test_dynamic_tanh_starts_at_its_alpha_and_squashes():
    layer = make_norm({"name": "dyt", "alpha": 0.25}, 4)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(x), torch.tanh(0.25 * x))
    assert layer(x * 1e6).abs().max() <= 1


def test_dynamic_erf_starts_at_its_alpha_and_shift_and_squashes():
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(make_norm("derf", 4)(x), torch.erf(0.5 * x))
    layer = make_norm({"name": "derf", "alpha": 0.25, "shift": 1.0}, 4)
    torch.testing.assert_close(layer(x), torch.erf(0.25 * x + 1))
    assert layer(x * 1e6).abs().max() <= 1


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_values_equal_the_formula(name, axes, route):
    layer, x = build(name, axes), draw(SHAPES[axes])
    state = {key: value.numpy() for key, value in layer.state_dict().items()}
    assert np.abs(as_array(layer(x), axes) - FORMULAS[name](as_array(x, axes), state)).max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_digits_where_the_mean_is_33_sigma(name, route):
    layer, x = make_norm(name, 4, 2), (draw((3, 4, 3, 2), level=0) / 2 + 33).float()
    y, exact = layer(x).double(), layer.double()(x.double())
    assert ((y - exact).abs() / exact.abs().clamp_min(1)).max() <= 5e-6


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_inputs_give_the_float64_result_rounded(name, parameters, route):
    layer, x = build(name, 2).to(parameters), draw(SHAPES[2]).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_are_right(name, route):
    layer, x = build(name, 2), draw((3, 4, 2, 1)).requires_grad_()
    names = [key for key, _ in layer.named_parameters()]
    inputs = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))

    def call(x, *parameters):
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("name", ["dyt", "derf"])
def test_the_third_derivative_is_that_of_the_squashing_function(name, route):
    layer, x = build(name, 2), draw((3, 4, 2, 1)).requires_grad_()
    y = layer(x).sum()
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    weight = layer.weight.view(-1, 1, 1)
    if name == "dyt":
        t = torch.tanh(layer.alpha * x)
        expected = weight * layer.alpha**3 * (1 - t**2) * (6 * t**2 - 2)
    else:
        z = layer.alpha * x + layer.shift
        expected = weight * layer.alpha**3 * 2 / math.sqrt(math.pi) * torch.exp(-(z**2)) * (4 * z**2 - 2)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("axes", LAST)
@pytest.mark.parametrize("name", NAMES)
def test_channels_last_is_kept_forward_and_backward(name, axes, route):
    layer, x = build(name, axes), draw(SHAPES[axes])
    last = x.contiguous(memory_format=LAST[axes]).requires_grad_()
    y = layer(last)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-12)
    assert y.is_contiguous(memory_format=LAST[axes])
    y.square().sum().backward()
    assert last.grad.is_contiguous(memory_format=LAST[axes])


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_to_one_graph_of_equal_value(name, route):
    layer, x = build(name, 2), draw(SHAPES[2])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-12)


def test_none_of_them_pools_anything():
    for name in ("none", *NAMES):
        entry = norm_entry(name)
        assert (entry.pools, entry.scale_invariant, entry.absorbs_bias) == ((), False, False)
        assert entry.thrice_differentiable
