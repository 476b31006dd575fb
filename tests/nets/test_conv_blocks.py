"""Residual blocks and upsampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ics_apps.nets.conv_blocks import ConvPair, Style, UpConv
from ics_apps.nets.sites import Site


def block(before, after, order="conv-norm-act", norm="instance", kind="residual"):
    torch.manual_seed(0)
    made = Style(kind, order, "relu").make(before, after, Site("here", norm, 2), Site("shortcut of here", norm, 2))
    return made.double()


def image(channels=4):
    return torch.randn(2, channels, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ["conv-norm-act", "conv-act-norm"])
def test_a_block_whose_second_convolution_is_silent_is_its_shortcut(order):
    made = block(4, 4, order, norm="none")
    nn.init.zeros_(made.conv2.weight)
    nn.init.zeros_(made.conv2.bias)
    assert torch.equal(made(image()), image().relu())


def test_the_shortcut_is_a_normed_convolution_only_where_the_channels_change():
    assert type(block(4, 4).shortcut) is nn.Identity
    assert [type(child).__name__ for child in block(4, 8).shortcut] == ["Conv2d", "InstanceNorm"]


def test_the_norm_comes_last_only_in_the_order_that_says_so():
    assert block(4, 8)(image()).min() == 0
    behind = block(4, 8, "conv-act-norm")(image())
    torch.testing.assert_close(behind.mean((2, 3)), torch.zeros(2, 8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_plain_block_has_no_shortcut():
    assert type(block(4, 8, kind="plain")) is ConvPair


@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (1, 1)])
def test_upsampling_multiplies_each_axis_by_its_stride(upsample, stride):
    up = UpConv(4, 3, Site("up", "none", 2), upsample, stride)
    assert up(torch.zeros(1, 4, 5, 6)).shape == (1, 3, 5 * stride[0], 6 * stride[1])
