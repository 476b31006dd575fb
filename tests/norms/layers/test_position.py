"""Norms over the channels of each position, and the formula taken by blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ics_apps.norms import NormError, make_norm, norm_entry
from ics_apps.norms.engine import blocked
from ics_apps.norms.engine.blocked import ChannelRows, by_blocks
from ics_apps.norms.layers.position import RMSNorm

SHAPES = {0: (3, 4), 1: (3, 4, 5), 2: (3, 4, 3, 2), 3: (3, 4, 2, 3, 2), "tokens": (3, 5, 4)}
NAMES = ("scale_norm", "pixel", "rms")
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def scale_norm(x, state):
    """On arrays (B, C, S)."""
    return state["weight"][0] * x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-5)


def pixel(x, state):
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8)


def rms(x, state):
    return state["weight"][:, None] * x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)


FORMULAS = {"scale_norm": scale_norm, "pixel": pixel, "rms": rms}


def primitive(name, x, layer):
    square = (x * x).sum(1, keepdim=True)
    if name == "scale_norm":
        return layer.weight * x / square**0.5
    if name == "rms":
        return layer.weight.view(-1, 1, 1) * x / (square / x.shape[1] + 1e-5) ** 0.5
    return x / (square / x.shape[1] + 1e-8) ** 0.5


def draw(shape, seed=0, level=0.7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + level


def as_array(x, axes):
    return (x.transpose(1, 2) if axes == "tokens" else x.flatten(2) if axes else x.unsqueeze(-1)).detach().numpy()


def made(name, axes):
    return RMSNorm(4, axes, 1e-5, True) if name == "rms" else make_norm(name, 4, axes)


def build(name, axes):
    layer = made(name, axes).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(1.3 + torch.arange(len(parameter)) / 4)
    return layer


@pytest.fixture(params=["whole", "blocks"])
def route(request, monkeypatch):
    """Run small inputs by the formula as it is, and by blocks of one sample as large inputs are."""
    if request.param == "blocks":
        monkeypatch.setattr(blocked, "BLOCK", 1)
    return request.param


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_values_equal_the_formula(name, axes, route):
    layer, x = build(name, axes), draw(SHAPES[axes])
    state = {key: value.numpy() for key, value in layer.state_dict().items()}
    assert np.abs(as_array(layer(x), axes) - FORMULAS[name](as_array(x, axes), state)).max() <= 1e-12


def test_scale_norm_gives_each_position_the_learned_length_which_starts_at_the_root_of_the_channels():
    layer, x = make_norm("scale_norm", 9, "tokens"), torch.randn(2, 3, 9)
    torch.testing.assert_close(layer(x).norm(dim=-1), torch.full((2, 3), 3.0))
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(1,)]


def test_vectors_shorter_than_eps_are_only_multiplied():
    layer = make_norm({"name": "scale_norm", "eps": 0.1}, 4, 0)
    torch.testing.assert_close(layer(torch.full((1, 4), 0.01)), torch.full((1, 4), 2 * 0.01 / 0.1))


def test_pixel_norm_equals_rms_norm_without_weight():
    x = draw((3, 4))
    torch.testing.assert_close(make_norm("pixel", 4, 0)(x), F.rms_norm(x, [4], eps=1e-8))


def test_zeros_stay_zeros_with_finite_gradients_of_the_second_order():
    for name in NAMES:
        x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
        y = build(name, 0)(x)
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum() + grad.sum(), x)
        assert torch.equal(y, torch.zeros_like(x))
        assert grad.isfinite().all()
        assert second.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_digits_where_the_mean_is_33_sigma(name, route):
    layer, x = made(name, 2), (draw((3, 4, 3, 2), level=0) / 2 + 33).float()
    y, exact = layer(x).double(), layer.double()(x.double())
    assert ((y - exact).abs() / exact.abs().clamp_min(1)).max() <= 5e-6


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_inputs_give_the_float64_result_rounded(name, route):
    layer, x = made(name, 2), draw((3, 4, 3, 2)).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=2**-8, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_are_right(name, route):
    layer, x = build(name, 2), draw((3, 4, 2, 1)).requires_grad_()
    inputs = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))

    def call(x, *weights):
        names = (name for name, _ in layer.named_parameters())
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_third_derivatives_are_right(name, route):
    layer, x, direction, weights = build(name, 2), *(draw((3, 4, 2, 1), seed) for seed in range(3))

    def third(f):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        y = (f(x + t * direction) * weights).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, t, create_graph=True)
        return y.item()

    assert third(layer) == pytest.approx(third(lambda x: primitive(name, x, layer)), rel=1e-9)


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


def test_an_eps_without_a_square_in_float32_is_refused():
    with pytest.raises(NormError, match=r"eps must be at least 1e-18.*got 1e-30"):
        make_norm({"name": "scale_norm", "eps": 1e-30}, 4)


def test_they_promise_to_pool_channels_only():
    assert all(norm_entry(name).pools == ("C",) and norm_entry(name).thrice_differentiable for name in NAMES)


def of_formula(layer, x):
    return layer._formula(x, *layer.parameters())


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_gradient_equals_that_of_the_plain_operations(name, axes, route):
    layer, x, weights = build(name, axes), draw(SHAPES[axes]), draw(SHAPES[axes], 1)
    x[0] *= 1e-7  # Below eps, or about it.
    inputs = [x.requires_grad_(), *layer.parameters()]
    found = torch.autograd.grad((layer(x) * weights).sum(), inputs)
    for mine, plain in zip(found, torch.autograd.grad((of_formula(layer, x) * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-11)


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some channels of a channels_last tensor": lambda x: torch.cat([x, x], 1).to(memory_format=LAST[2])[:, :4],
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other sample": lambda x: x.repeat_interleave(2, 0)[::2],
    "one sample, expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_any_layout_give_the_same_values_and_gradients(name, layout, route):
    layer = build(name, 2)
    laid = LAYOUTS[layout](draw(SHAPES[2])).detach().requires_grad_()
    plain = laid.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    found = []
    for x in (laid, plain):
        y = layer(x)
        # The upstream gradient of a sum is a single expanded number.
        found.append([y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_its_output_may_be_changed_in_place_by_an_activation(name, route):
    layer, x = build(name, 2), draw(SHAPES[2]).requires_grad_()
    (mine,) = torch.autograd.grad(F.relu_(layer(x)).sum(), x)
    (plain,) = torch.autograd.grad(F.relu(layer(x)).sum(), x)
    assert torch.equal(mine, plain)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_bfloat16_inputs_are_those_of_float64_rounded(name, route):
    layer, x, weights = made(name, 2), draw(SHAPES[2]).bfloat16().requires_grad_(), draw(SHAPES[2], 1).bfloat16()
    found = torch.autograd.grad(layer(x), [x, *layer.parameters()], weights)
    layer, exact = layer.double(), x.detach().double().requires_grad_()
    expected = torch.autograd.grad(layer(exact), [exact, *layer.parameters()], weights.double())
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2**-8, atol=1e-6)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_only_the_wanted_gradient_is_given(wanted, route):
    layer, x = build("rms", 2), draw(SHAPES[2]).requires_grad_(wanted == "x")
    layer.weight.requires_grad_(wanted == "weight")
    layer(x).square().sum().backward()
    assert [tensor.grad is not None for tensor in (x, layer.weight)] == [wanted == "x", wanted == "weight"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_without_eps_takes_the_machine_epsilon_of_the_precision_of_its_mean(dtype):
    x = torch.full((1, 4), 2.0**-12, dtype=dtype)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    y = RMSNorm(4, 0, None, False)(x)
    torch.testing.assert_close(y.double(), x.double() / (x.double().square() + eps).sqrt(), rtol=2**-8, atol=0)


def test_rms_norm_is_torchs_layer_in_kind_parameters_and_value():
    layer, torchs, x = RMSNorm(4, "tokens", None, True), nn.RMSNorm(4), draw(SHAPES["tokens"]).float()
    assert isinstance(layer, nn.RMSNorm)
    assert layer.state_dict().keys() == torchs.state_dict().keys()
    assert repr(layer) == repr(torchs)
    torch.testing.assert_close(layer(x), torchs(x))
    assert list(RMSNorm(4, 2, None, False).parameters()) == []


def test_rows_find_the_channels_where_they_lie():
    x = draw(SHAPES[2])
    last = x.contiguous(memory_format=torch.channels_last)
    assert [ChannelRows.of(tensor, 1).at for tensor in (x, last, x[:, :, ::2])] == [1, 2, 1]
    rows = ChannelRows.of(last, 1)
    assert rows.flat(last).shape == (3, 6, 4)
    assert rows.flat(last).data_ptr() == last.data_ptr()
    assert torch.equal(rows.flat(rows.dense(x)), rows.flat(last))


def squashed(x, weight, bias):
    return torch.tanh(x) * weight.view(-1, 1) + bias.view(-1, 1)


def test_blocks_of_uneven_size_give_the_values_and_gradients_of_the_whole(monkeypatch):
    x, weight, bias = draw((7, 4, 3)), draw((4,), 1), draw((4,), 2)
    gradients = []
    for block in (2**18, 3 * 12):
        monkeypatch.setattr(blocked, "BLOCK", block)
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = by_blocks(squashed, *inputs)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert type(gradients[1][0].grad_fn).__name__ == "_ByRuleBackward"
    for whole, by_block in zip(*gradients, strict=True):
        torch.testing.assert_close(by_block, whole, rtol=1e-13, atol=1e-13)


def test_blocks_leave_out_the_gradients_that_nobody_asked_for(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 1)
    x, weight, bias = draw((3, 4, 2)), draw((4,), 1).requires_grad_(), draw((4,), 2)
    by_blocks(squashed, x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tanh(x).sum((0, 2)))
    assert (x.grad, bias.grad) == (None, None)


def test_blocks_add_up_the_gradients_of_half_precision_parameters_in_float32(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 1)
    x = torch.ones(300, 4, 1, dtype=torch.bfloat16)
    weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    by_blocks(lambda x, weight: x * weight.view(-1, 1), x, weight).backward(x)
    # bfloat16 sums of ones stop at 256.
    assert weight.grad.tolist() == [300.0] * 4


# torch's own forward mode scripts its decompositions when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_functional_transforms_and_forward_mode_see_through_the_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 1)
    x, weight, bias = draw((3, 4, 2)), draw((4,), 1), draw((4,), 2)
    _, tangent = torch.func.jvp(lambda x: by_blocks(squashed, x, weight, bias), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, weight.view(-1, 1) / torch.cosh(x) ** 2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        y = torch.autograd.forward_ad.unpack_dual(by_blocks(squashed, dual, weight, bias))
    torch.testing.assert_close(y.tangent, tangent)


def test_a_layer_by_blocks_exports_as_plain_operations(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 1)
    net, x = nn.Sequential(make_norm("pixel", 4)), torch.randn(3, 4, 3, 2)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), rtol=0, atol=1e-6)
