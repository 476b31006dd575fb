"""The engine against torch's own norms: values, derivatives, layouts, precision, transforms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ics_apps.norms.engine.axes import space_axes
from ics_apps.norms.engine.moments import channel_moments, normalize, pooled, pooled_groups, standardized

EPS = 1e-5


def batch(mean, var, weight, bias):
    return standardized(mean, *pooled(mean, var, 0), weight, bias, EPS)


def instance(mean, var, weight, bias):
    return standardized(mean, mean, var, weight, bias, EPS)


def torch_batch(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)


def torch_instance(x, weight, bias):
    return F.instance_norm(x, None, None, weight, bias, True, 0.0, EPS)


PAIRS = [pytest.param(batch, torch_batch, id="batch"), pytest.param(instance, torch_instance, id="instance")]
torch_warns_of_itself = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
against_torch = pytest.mark.parametrize(("program", "expected"), PAIRS)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.7


def affine(grad=True):
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=grad)
    return weight, torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64, requires_grad=grad)


LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: x.clone(memory_format=torch.channels_last),
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "inner window": lambda x: F.pad(x, (1, 2, 1, 1))[:, :, 1:-1, 1:-2],
    "transposed": lambda x: x.mT.contiguous().mT,
    "one sample, expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "one channel, expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


def same(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@against_torch
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_values_and_gradients_are_torchs_in_every_layout(program, expected, layout):
    x, g, tensors = draw(4, 3, 2, 5).requires_grad_(), draw(4, 3, 2, 5, seed=1), affine()
    results = []
    for apply in (lambda x, *t: normalize(x, 2, program, *t)[0], expected):
        y = apply(LAYOUTS[layout](x), *tensors)
        results.append([y, *torch.autograd.grad((y * g).sum(), (x, *tensors))])
    for found, torchs in zip(*results, strict=True):
        same(found, torchs)


@against_torch
@pytest.mark.parametrize("incoming", ["channels_last", "transposed", "one channel, expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_incoming_gradient_may_lie_otherwise_than_the_input(program, expected, layout, incoming):
    x, g, tensors = LAYOUTS[layout](draw(4, 3, 2, 5)).requires_grad_(), draw(4, 3, 2, 5, seed=1), affine()
    found = torch.autograd.grad(normalize(x, 2, program, *tensors)[0], (x, *tensors), LAYOUTS[incoming](g))
    torchs = torch.autograd.grad(expected(x, *tensors), (x, *tensors), LAYOUTS[incoming](g))
    for ours, theirs in zip(found, torchs, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize(("dim", "shape"), [(1, (4, 3, 6)), (3, (4, 3, 2, 3, 2)), ("tokens", (4, 6, 3))])
@against_torch
def test_values_are_torchs_in_every_dimension(program, expected, dim, shape):
    x, tensors = draw(*shape), affine(grad=False)
    by_torch = expected(x.mT, *tensors).mT if dim == "tokens" else expected(x, *tensors)
    same(normalize(x, dim, program, *tensors)[0], by_torch)


def test_features_are_batches_of_one_position():
    x, tensors = draw(6, 3), affine(grad=False)
    same(normalize(x, 0, batch, *tensors)[0], torch_batch(x, *tensors))


def test_moments_are_returned_as_constants_of_each_samples_channels():
    x = draw(4, 3, 2, 5).requires_grad_()
    _, mean, var = normalize(x, 2, batch, *affine())
    assert not mean.requires_grad
    assert not var.requires_grad
    same(mean, x.detach().mean((2, 3)))
    same(var, x.detach().var((2, 3), correction=0))


def test_an_empty_batch_gives_an_empty_result_and_gradients_of_zero():
    x, tensors = draw(0, 3, 2, 5).requires_grad_(), affine()
    y, mean, _ = normalize(x, 2, instance, *tensors)
    gradients = torch.autograd.grad(y.sum(), (x, *tensors))
    assert (y.shape, mean.shape, gradients[0].shape) == ((0, 3, 2, 5), (0, 3), (0, 3, 2, 5))
    assert gradients[1].tolist() == gradients[2].tolist() == [0, 0, 0]


@against_torch
def test_gradients_of_parameters_do_not_need_one_of_the_input(program, expected):
    x, g, tensors = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1), affine()
    found = torch.autograd.grad(normalize(x, 2, program, *tensors)[0], tensors, g)
    for ours, theirs in zip(found, torch.autograd.grad(expected(x, *tensors), tensors, g), strict=True):
        same(ours, theirs)


def test_a_parameter_that_needs_no_gradient_gets_none():
    x, (weight, bias) = draw(4, 3, 2, 5).requires_grad_(), affine()
    normalize(x, 2, batch, weight, bias.detach())[0].square().sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is None


def test_a_program_without_tensors_or_gradient_is_a_constant_map():
    x = draw(4, 3, 2, 5).requires_grad_()

    def double(mean, var):
        return torch.full_like(mean, 2.0), torch.zeros_like(mean)

    y, _, _ = normalize(x, 2, double)
    same(y, 2 * (x - x.mean((2, 3), keepdim=True)))
    y.sum().backward()
    same(x.grad, torch.zeros_like(x))


def derivatives(function, x, order):
    """The gradients of order 1 to `order`, each that of a weighted sum of the one before."""
    value, found = function(x), []
    for k in range(order):
        (value,) = torch.autograd.grad((value * draw(*value.shape, seed=k + 1)).sum(), x, create_graph=True)
        found.append(value)
    return found


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "inner window"])
@pytest.mark.parametrize("program", [batch, instance])
def test_three_derivatives_are_those_of_the_plain_formula(program, layout):
    x, tensors = draw(3, 3, 2, 2).requires_grad_(), affine(grad=False)

    def plain(x):
        axes = (0, 2, 3) if program is batch else (2, 3)
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        weight, bias = (t[:, None, None] for t in tensors)
        return (x - mean) / (var + EPS).sqrt() * weight + bias

    found = derivatives(lambda x: normalize(LAYOUTS[layout](x), 2, program, *tensors)[0], x, 3)
    for ours, theirs in zip(found, derivatives(plain, x, 3), strict=True):
        # Derivatives of order 3 reach 100.
        same(ours, theirs, tolerance=1e-10)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("program", [batch, instance])
def test_float32_keeps_its_digits_at_a_mean_of_1000_sigma(program, layout):
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = LAYOUTS[layout](noise + 1000).requires_grad_()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    exact = x.detach().double().requires_grad_()
    y = normalize(x, 2, program, *(t.float() for t in affine()))[0]
    expected = normalize(exact, 2, program, *affine())[0]
    assert (y.double() - expected).abs().max() < 1e-4
    y.backward(g)
    expected.backward(g.double())
    assert (x.grad.double() - exact.grad).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    x = draw(4, 3, 2, 5).to(dtype)
    tensors = [t.float() for t in affine()]
    y = normalize(x, 2, batch, *tensors)[0]
    assert y.dtype == dtype
    exact = normalize(x.double(), 2, batch, *affine())[0]
    assert ((y.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs().clamp(min=1e-2)).all()


@pytest.mark.parametrize("program", [batch, instance])
def test_it_runs_under_vmap_and_functional_gradients(program):
    stack, g, tensors = draw(2, 4, 3, 2, 5), draw(4, 3, 2, 5, seed=1), affine(grad=False)

    def loss(x):
        return (normalize(x, 2, program, *tensors)[0] * g).sum()

    found = torch.func.vmap(torch.func.grad(loss))(stack)
    for x, gradient in zip(stack, found, strict=True):
        x = x.clone().requires_grad_()
        same(gradient, torch.autograd.grad(loss(x), x)[0])


@torch_warns_of_itself
def test_forward_mode_gives_the_slope_along_a_direction():
    x, v, tensors = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1), affine(grad=False)

    def function(x):
        return normalize(x, 2, batch, *tensors)[0]

    _, slope = torch.func.jvp(function, (x,), (v,))
    g = draw(4, 3, 2, 5, seed=2)
    leaf = x.clone().requires_grad_()
    (backward,) = torch.autograd.grad(function(leaf), leaf, g)
    same((slope * g).sum(), (backward * v).sum())


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_channel_moments_and_their_derivatives_are_right_in_every_layout(layout):
    x = draw(4, 3, 2, 5).requires_grad_()
    mean, var = channel_moments(LAYOUTS[layout](x), 2)
    same(mean, LAYOUTS[layout](x).mean((2, 3)))
    same(var, LAYOUTS[layout](x).var((2, 3), correction=0))
    moments = lambda x: channel_moments(LAYOUTS[layout](x), 2)  # noqa: E731
    assert torch.autograd.gradcheck(moments, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(moments, x, fast_mode=True)


@pytest.mark.parametrize(("dim", "shape"), [(0, (4, 3)), (1, (4, 3, 5)), (3, (2, 3, 2, 2, 2)), ("tokens", (4, 5, 3))])
def test_channel_moments_pool_the_positions_of_every_dimension(dim, shape):
    x = draw(*shape).requires_grad_()
    mean, var = channel_moments(x, dim)
    axes = space_axes(dim)
    same(mean, x.mean(axes) if axes else x)
    same(var, x.var(axes, correction=0) if axes else torch.zeros_like(x))
    assert torch.autograd.gradcheck(lambda x: channel_moments(x, dim), x, fast_mode=True)


def test_pooled_moments_are_those_of_the_union():
    x = draw(4, 3, 10)
    mean, var = pooled(*channel_moments(x, 1), 0)
    same(mean[0], x.mean((0, 2)))
    same(var[0], x.var((0, 2), correction=0))


@pytest.mark.parametrize("num_groups", [1, 2, 6])
def test_pooled_groups_are_the_moments_of_each_channels_group(num_groups):
    x = draw(4, 6, 10)
    grouped = x.view(4, num_groups, -1)
    mean, var = pooled_groups(*channel_moments(x, 1), num_groups)
    same(mean, grouped.mean(2).repeat_interleave(6 // num_groups, 1))
    same(var, grouped.var(2, correction=0).repeat_interleave(6 // num_groups, 1))
