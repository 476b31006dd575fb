"""Norms within one sample: their relations to each other and their refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ics_apps.norms import make_norm


def test_layer_chw_is_group_norm_with_one_group():
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(make_norm("layer_chw", 8)(x), F.group_norm(x, 1, torch.ones(8), torch.zeros(8)))


def test_the_two_meanings_of_layer_norm_differ_on_images_and_agree_on_features():
    x = torch.randn(2, 8, 5, 5)
    assert not torch.allclose(make_norm("layer_chw", 8)(x), make_norm("layer_c", 8)(x))
    features = torch.randn(2, 8)
    torch.testing.assert_close(make_norm("layer_chw", 8, 0)(features), make_norm("layer_c", 8, 0)(features))


def test_layer_of_tokens_is_torchs_layer_norm():
    layer = make_norm("layer", 8, "tokens")
    assert isinstance(layer, nn.LayerNorm)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_equals_torchs_in_value_and_gradient(memory_format):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64).to(memory_format=memory_format)
    ours, torchs = make_norm("instance", 4).double(), nn.InstanceNorm2d(4, affine=True).double()
    weights = torch.randn_like(x)
    gradients = []
    for module in (ours, torchs):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        (y * weights).sum().backward()
        gradients.append((y, leaf.grad, module.weight.grad, module.bias.grad))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dim", "shape"), [(2, (2, 4, 1, 1)), (3, (2, 4, 1, 1, 1)), ("tokens", (2, 1, 4))])
def test_instance_norm_refuses_a_single_position_with_the_size_it_got(dim, shape):
    norm = make_norm("instance", 4, dim)
    for training in (True, False):
        with pytest.raises(
            ValueError, match=r"within each of 4 groups of channels needs more than one position, got input size \(2"
        ):
            norm.train(training)(torch.zeros(shape))


def test_instance_norm_keeps_its_digits_in_channels_last_beside_a_large_mean():
    # Group norm of single channels, the obvious route, is off by 5e-3 here: its variance is a difference of squares.
    x = (torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0)) + 33).to(
        memory_format=torch.channels_last
    )
    norm = make_norm("instance", 8)
    error = (norm(x) - norm.double()(x.double())).abs().max().item()
    assert error < 1e-4


@given(scale=st.floats(0.1, 10), shift=st.floats(-10, 10))
@settings(max_examples=20, deadline=None)
def test_instance_norm_cancels_contrast_and_brightness_of_each_channel(scale, shift):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = make_norm({"name": "instance", "eps": 1e-12}, 3).double()
    torch.testing.assert_close(norm(scale * x + shift), norm(x), rtol=0, atol=1e-8)


@given(st.integers(1, 24), st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_group_norm_is_built_exactly_if_the_groups_divide_the_channels(channels, num_groups):
    spec = {"name": "group", "num_groups": num_groups}
    if channels % num_groups == 0:
        assert make_norm(spec, channels).num_groups == num_groups
    else:
        with pytest.raises(ValueError, match=f"{channels} channels cannot be split into {num_groups} equal groups"):
            make_norm(spec, channels)


def test_rms_norm_leaves_the_mean_and_sets_the_size_of_each_position():
    x = torch.randn(2, 8, 5, 5) + 3
    y = make_norm("rms", 8)(x)
    torch.testing.assert_close(y.square().mean(1), torch.ones(2, 5, 5))
    torch.testing.assert_close(y, x / x.square().mean(1, keepdim=True).sqrt())


def test_filter_response_contains_its_activation():
    y = make_norm("filter_response", 4)(torch.randn(2, 4, 5, 5))
    assert y.min() == 0


def test_global_response_starts_as_the_identity():
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(make_norm("global_response", 4)(x), x, rtol=0, atol=5e-7)


def test_global_response_has_a_gradient_where_a_channel_is_zero():
    x = torch.zeros(2, 4, 5, 5, requires_grad=True)
    norm = make_norm("global_response", 4)
    nn.init.ones_(norm.weight)
    norm(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("affine_norm", ["batch", "instance", "layer_c", "layer_chw", "group", "rms"])
def test_a_norm_without_affine_has_no_parameters(affine_norm):
    layer = make_norm({"name": affine_norm, "affine": False}, 8)
    assert list(layer.parameters()) == []
    assert layer(torch.randn(2, 8, 4, 4)).shape == (2, 8, 4, 4)
