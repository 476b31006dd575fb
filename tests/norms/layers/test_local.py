"""Norms over windows of channels or of positions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ics_apps.norms import NormError, make_norm, norm_entry
from ics_apps.norms.engine import blocked
from ics_apps.norms.layers.local import _window_sum

SHAPES = {0: (3, 6), 1: (3, 6, 8), 2: (3, 6, 7, 4), 3: (3, 6, 3, 6, 2), "tokens": (3, 8, 6)}
# With a window and constants that matter on these small inputs.
SPECS = {
    "local_response": {"name": "local_response", "size": 3, "alpha": 0.2},
    "local_response, any power": {"name": "local_response", "size": 5, "alpha": 0.3, "beta": 0.6, "k": 1.0},
    "divisive": {"name": "divisive", "window": 3},
    "divisive, each channel": {"name": "divisive", "window": 5, "across_channels": False},
    "divisive, no affine": {"name": "divisive", "window": 3, "affine": False},
}
CASES = [(case, axes) for case in SPECS for axes in SHAPES if axes != 0 or case.startswith("local")]
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def local_response(x, spec):
    """On an array (B, C, *S), by loops."""
    y, half = np.empty_like(x), spec["size"] // 2
    for c in range(x.shape[1]):
        energy = (x[:, max(0, c - half) : c + half + 1] ** 2).sum(1)
        y[:, c] = x[:, c] / (spec.get("k", 2.0) + spec["alpha"] * energy) ** spec.get("beta", 0.75)
    return y


def window_mean(x, spec):
    """Mean over the window of each position, on an array (B, C, *S), by loops."""
    y, half = np.empty_like(x), spec["window"] // 2
    axes = tuple(range(1 if spec.get("across_channels", True) else 2, x.ndim))
    for place in itertools.product(*map(range, x.shape[2:])):
        box = tuple(slice(max(0, i - half), i + half + 1) for i in place)
        y[(..., *place)] = x[(slice(None), slice(None), *box)].mean(axes, keepdims=True).reshape(len(x), -1)
    return y


def divisive(x, spec, state):
    v = x - window_mean(x, spec)
    y = v / np.sqrt(state["sigma"][0] ** 2 + window_mean(v**2, spec))
    if "weight" in state:
        shape = (-1, *[1] * (x.ndim - 2))
        y = y * state["weight"].reshape(shape) + state["bias"].reshape(shape)
    return y


def expected(case, x, state):
    spec = SPECS[case]
    return divisive(x, spec, state) if case.startswith("divisive") else local_response(x, spec)


def draw(shape, seed=0, level=0.7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + level


def channels_first(x, axes):
    return (x.transpose(1, 2) if axes == "tokens" else x).detach().numpy()


def build(case, axes):
    """A layer in float64 whose parameters all differ from their start."""
    layer = make_norm(SPECS[case], 6, axes).double()
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


@pytest.mark.parametrize(("case", "axes"), CASES)
def test_values_equal_the_formula(case, axes, route):
    layer, x = build(case, axes), draw(SHAPES[axes])
    state = {key: value.numpy() for key, value in layer.state_dict().items()}
    y = channels_first(layer(x), axes)
    assert np.abs(y - expected(case, channels_first(x, axes), state)).max() <= 1e-12


def test_local_response_takes_the_papers_alpha_where_torch_takes_size_times_it():
    x = draw((2, 6, 5, 5)) * 50
    y = make_norm("local_response", 6)(x)
    torch.testing.assert_close(y, F.local_response_norm(x, 5, alpha=5 * 1e-4, beta=0.75, k=2.0))


def test_local_response_of_a_loud_channel_damps_its_neighbours_only():
    layer, x = make_norm({"name": "local_response", "size": 3}, 6), torch.ones(1, 6, 2, 2)
    loud = x.clone()
    loud[:, 2] = 100
    changed = (layer(loud) != layer(x)).flatten(2).all(2).squeeze(0)
    assert changed.tolist() == [False, True, True, True, False, False]


def test_divisive_norm_of_a_window_over_the_whole_image_is_a_layer_norm_whose_eps_is_sigma_squared():
    x = draw((2, 6, 3, 2))
    y = make_norm({"name": "divisive", "window": 7, "sigma": 0.5}, 6).double()(x)
    torch.testing.assert_close(y, F.layer_norm(x, x.shape[1:], eps=0.25), rtol=0, atol=1e-12)


def test_divisive_norm_of_window_1_is_a_layer_norm_of_each_position():
    x = draw((2, 6, 3, 2))
    y = make_norm({"name": "divisive", "window": 1}, 6).double()(x)
    torch.testing.assert_close(y, F.layer_norm(x.movedim(1, -1), [6], eps=1.0).movedim(-1, 1), rtol=0, atol=1e-12)


def test_divisive_norm_equals_out_contrasts_that_vary_from_place_to_place():
    x = draw((1, 2, 60, 60), level=0)
    x[..., 30:] *= 100
    y = make_norm({"name": "divisive", "window": 9, "sigma": 0.1}, 2).double()(x)
    left, right = (y[..., columns].std().item() for columns in (slice(5, 25), slice(35, 55)))
    assert left == pytest.approx(right, rel=0.05)


def test_divisive_norm_of_a_constant_image_is_its_bias_also_at_the_border():
    layer, x = build("divisive", 2), torch.full((2, 6, 5, 4), 3.0, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.bias.view(-1, 1, 1).expand_as(x), rtol=0, atol=1e-12)


def test_divisive_norm_refuses_one_position_if_each_channel_stands_alone():
    layer = make_norm({"name": "divisive", "across_channels": False}, 6)
    with pytest.raises(ValueError, match=r"needs more than one position, got input size \(2, 6, 1, 1\); use a larger"):
        layer(torch.randn(2, 6, 1, 1))
    assert make_norm("divisive", 6)(torch.randn(2, 6, 1, 1)).isfinite().all()


@pytest.mark.parametrize("case", SPECS)
def test_float32_keeps_its_digits_where_the_mean_is_33_sigma(case, route):
    shape = (3, 6, 24, 24)
    layer, x = make_norm(SPECS[case], 6, 2), (draw(shape, level=0) / 2 + 33).float()
    y, exact = layer(x).double(), layer.double()(x.double())
    assert ((y - exact).abs() / exact.abs().clamp_min(1)).max() <= 5e-6


@pytest.mark.parametrize("case", SPECS)
def test_bfloat16_inputs_give_the_float64_result_rounded(case, route):
    layer, x = build(case, 2).float(), draw(SHAPES[2]).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("case", SPECS)
def test_first_and_second_derivatives_are_right(case, route):
    layer, x = build(case, 2), draw((2, 6, 3, 2)).requires_grad_()
    inputs = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))

    def call(x, *parameters):
        names = (name for name, _ in layer.named_parameters())
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "last", "strided"])
@pytest.mark.parametrize(("case", "axes"), CASES)
def test_the_first_gradient_equals_that_of_the_plain_operations(case, axes, layout, route):
    layer, x, weights = build(case, axes), draw(SHAPES[axes]), draw(SHAPES[axes], 1)
    x = {
        "contiguous": x,
        "last": x.movedim(1, -1).contiguous().movedim(-1, 1),
        "strided": x.repeat(2, 1, *[1] * (x.dim() - 2))[::2],
    }[layout]
    inputs = [x.requires_grad_(), *layer.parameters()]
    found = torch.autograd.grad((layer(x) * weights).sum(), inputs)
    plain = torch.autograd.grad((layer._formula(x, *layer.parameters()) * weights).sum(), inputs)
    for mine, other in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", SPECS)
def test_gradients_of_bfloat16_inputs_are_those_of_float64_rounded(case, route):
    layer, x = build(case, 2).float(), draw(SHAPES[2]).bfloat16().requires_grad_()
    weights = draw(SHAPES[2], 1).bfloat16()
    found = torch.autograd.grad(layer(x), [x, *layer.parameters()], weights)
    layer, exact = layer.double(), x.detach().double().requires_grad_()
    expected = torch.autograd.grad(layer(exact), [exact, *layer.parameters()], weights.double())
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2**-8, atol=1e-5)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", SPECS)
def test_only_the_wanted_gradients_are_given(case, route):
    layer, x = build(case, 2), draw(SHAPES[2])
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    layer(leaf).square().sum().backward()
    assert leaf.grad is not None
    assert [parameter.grad for parameter in layer.parameters()] == [None] * len(list(layer.parameters()))
    if getattr(layer, "sigma", None) is not None:
        layer.sigma.requires_grad_()
        layer(x).square().sum().backward()
        assert layer.sigma.grad is not None


@pytest.mark.parametrize("case", SPECS)
def test_blocks_of_uneven_size_give_the_values_and_gradients_of_the_whole(case, monkeypatch):
    layer, x, found = build(case, 2), draw((5, 6, 7, 4)).requires_grad_(), []
    for block in (2**18, 2 * x[0].numel()):
        monkeypatch.setattr(blocked, "BLOCK", block)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for whole, by_block in zip(*found, strict=True):
        torch.testing.assert_close(by_block, whole, rtol=1e-12, atol=1e-12)


def test_window_sums_are_those_by_loops_for_any_size():
    values = draw((2, 9))
    for size in (1, 3, 5, 7, 9, 11, 21):
        loops = [values[:, max(0, i - size // 2) : i + size // 2 + 1].sum(1) for i in range(9)]
        torch.testing.assert_close(_window_sum(values, 1, size), torch.stack(loops, 1), rtol=0, atol=1e-12)


def primitive(case, x, sigma):
    """On (B, C, L), by matrices in place of windows."""
    spec = SPECS[case]
    distance = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()
    if case.startswith("local"):
        energy = (distance <= spec["size"] // 2).double() @ x**2
        return x / (spec.get("k", 2.0) + spec["alpha"] * energy) ** spec.get("beta", 0.75)
    distance = (torch.arange(x.shape[2])[:, None] - torch.arange(x.shape[2])).abs()
    window = (distance <= spec["window"] // 2).double()
    window = window / window.sum(0)

    def mean(v):
        return (v.mean(1, keepdim=True) if spec.get("across_channels", True) else v) @ window

    centred = x - mean(x)
    return centred / (sigma**2 + mean(centred**2)) ** 0.5


@pytest.mark.parametrize("case", SPECS)
def test_third_derivatives_are_right(case, route):
    layer, x, direction, weights = build(case, 1), *(draw((3, 6, 7), seed) for seed in range(3))

    def third(f):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        y = (f(x + t * direction) * weights).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, t, create_graph=True)
        return y.item()

    def formula(x):
        y = primitive(case, x, getattr(layer, "sigma", None))
        return y if getattr(layer, "weight", None) is None else y * layer.weight.view(-1, 1) + layer.bias.view(-1, 1)

    assert third(layer) == pytest.approx(third(formula), rel=1e-9)


@pytest.mark.parametrize("axes", LAST)
@pytest.mark.parametrize("case", SPECS)
def test_channels_last_is_kept_forward_and_backward(case, axes, route):
    layer, x = build(case, axes), draw(SHAPES[axes])
    last = x.contiguous(memory_format=LAST[axes]).requires_grad_()
    y = layer(last)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-12)
    assert y.is_contiguous(memory_format=LAST[axes])
    y.square().sum().backward()
    assert last.grad.is_contiguous(memory_format=LAST[axes])


@pytest.mark.parametrize(("case", "axes"), [(case, axes) for case, axes in CASES if axes in (2, "tokens")])
def test_it_compiles_to_one_graph_of_equal_value(case, axes):
    layer, x = build(case, axes), draw(SHAPES[axes])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "local_response", "size": 4},
            "size must be odd and positive, so that the window has a middle, got 4",
        ),
        ({"name": "local_response", "k": 0}, "k must be positive, got 0"),
        ({"name": "local_response", "alpha": -1.0}, "alpha must not be negative, got -1.0"),
        ({"name": "divisive", "window": 0}, "window must be odd and positive, so that the window has a middle, got 0"),
        ({"name": "divisive", "sigma": 0.0}, "sigma must be positive, got 0.0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(spec, message):
    with pytest.raises(NormError, match=message):
        make_norm(spec, 6)


def test_divisive_norm_of_features_is_refused_with_the_way_out():
    with pytest.raises(
        NormError, match="not defined for dim 0: features have no positions to form windows of; 'layer'"
    ):
        make_norm("divisive", 6, 0)


def test_their_promises():
    assert norm_entry("local_response").pools == ("C",)
    assert norm_entry("divisive").pools == ("C", "S")
    assert not any(norm_entry(name).scale_invariant for name in ("local_response", "divisive"))
