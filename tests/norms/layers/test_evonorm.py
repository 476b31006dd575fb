"""The EvoNorms at the limits of their slope, where they are simpler things."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from ics_apps.norms import make_norm
from ics_apps.norms.engine import blocked

EPS = 1e-5
BATCH = (0, 2, 3)
SPACE = (2, 3)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.7


def build(name, slope, dim=2, **options):
    norm = make_norm({"name": name, **options}, 4, dim).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
        norm.bias.copy_(torch.tensor([-0.1, 0.2, 0.3, 0.4]))
        norm.slope.fill_(slope)
    return norm


def affine(z, norm):
    return z * norm.weight[:, None, None] + norm.bias[:, None, None]


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def group_deviation(x):
    var = x.reshape(len(x), 2, -1).var(2, correction=0)
    return (var + EPS).sqrt().repeat_interleave(2, 1)[:, :, None, None]


def test_s0_at_slope_0_is_half_the_input_by_the_deviation_of_its_group():
    x, norm = draw(3, 4, 5, 2), build("evonorm_s0", 0.0, num_groups=2)
    same(norm(x), affine(x / 2 / group_deviation(x), norm))


def test_s0_at_a_large_slope_is_a_rectifier_by_the_deviation_of_its_group():
    x, norm = draw(3, 4, 5, 2), build("evonorm_s0", 1e6, num_groups=2)
    same(norm(x), affine(x.relu() / group_deviation(x), norm))


def test_s0_at_slope_1_is_swish_by_the_deviation_of_its_group():
    x, norm = draw(3, 4, 5, 2), build("evonorm_s0", 1.0, num_groups=2)
    same(norm(x), affine(torch.nn.functional.silu(x) / group_deviation(x), norm))


def test_s0_is_the_same_in_training_and_evaluation():
    x, norm = draw(3, 4, 5, 2), build("evonorm_s0", 0.7, num_groups=2)
    assert torch.equal(norm(x), norm.eval()(x))


def deviations(x):
    return ((x.var(axes, correction=0, keepdim=True) + EPS).sqrt() for axes in (BATCH, SPACE))


def test_b0_at_slope_0_divides_by_the_larger_of_the_two_deviations():
    x, norm = draw(3, 4, 5, 2) * torch.tensor([0.5, 1.0, 3.0])[:, None, None, None], build("evonorm_b0", 0.0)
    of_batch, own = deviations(x)
    assert 0 < (of_batch > own).double().mean() < 1
    same(norm(x), affine(x / torch.maximum(of_batch, own), norm))


def test_b0_of_one_sample_with_negative_values_only_divides_by_its_deviation():
    # Both deviations are one, and the inner value lies below it.
    x, norm = -draw(1, 4, 5, 2).abs() - 0.1, build("evonorm_b0", 1.0)
    of_batch, _ = deviations(x)
    same(norm(x), affine(x / of_batch, norm))


def test_b0_at_a_large_slope_saturates_where_the_input_is_positive():
    x, norm = draw(3, 4, 5, 2), build("evonorm_b0", 1e9)
    z = (norm(x) - norm.bias[:, None, None]) / norm.weight[:, None, None] * 1e9
    same(z[x > 0.1].detach(), torch.ones_like(z[x > 0.1]), tolerance=1e-6)


def test_b0_keeps_a_running_unbiased_variance_for_evaluation():
    x, norm = draw(3, 4, 5, 2), build("evonorm_b0", 0.5, momentum=0.25)
    norm(x)
    same(norm.running_var, 0.75 + 0.25 * x.var(BATCH))
    _, own = deviations(x)
    floor = (norm.running_var + EPS).sqrt()[:, None, None]
    same(norm.eval()(x), affine(x / torch.maximum(floor, 0.5 * x + own), norm))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "options"), [("evonorm_s0", {"num_groups": 2}), ("evonorm_b0", {})])
def test_gradients_are_right_by_blocks_of_one_sample(name, options, layout, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 1)
    x, norm = draw(3, 4, 3, 2).contiguous(memory_format=layout).requires_grad_(), build(name, 0.7, **options)
    names = ("weight", "bias", "slope")
    call = lambda x, *given: functional_call(norm, dict(zip(names, given, strict=True)), x)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias, norm.slope))


def test_a_parameter_that_is_frozen_gets_no_gradient_and_changes_no_other():
    x, free, frozen = draw(3, 4, 3, 2), build("evonorm_b0", 0.7), build("evonorm_b0", 0.7)
    frozen.slope.requires_grad_(False)
    for norm in (free, frozen):
        (norm(x) * draw(3, 4, 3, 2, seed=1)).sum().backward()
    assert frozen.slope.grad is None
    assert torch.equal(frozen.weight.grad, free.weight.grad)
