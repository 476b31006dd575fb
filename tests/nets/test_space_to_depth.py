from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ics_apps.nets import UNet
from ics_apps.nets.space_to_depth import depth_to_space, space_to_depth


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 3), factor=st.integers(1, 3), sizes=st.lists(st.integers(1, 3), min_size=3, max_size=3))
def test_unfolding_undoes_folding(dim: int, factor: int, sizes: list[int]) -> None:
    x = torch.rand(2, 3, *(size * factor for size in sizes[:dim]))
    folded = space_to_depth(x, factor)
    assert folded.shape == (2, 3 * factor**dim, *sizes[:dim])
    assert torch.equal(depth_to_space(folded, factor), x)


def test_the_general_form_orders_channels_as_torch_does_in_two_dimensions() -> None:
    x = torch.rand(1, 2, 6, 4)
    # A volume of two equal slices, folded, holds the 2-D folding of a slice in its even and odd channel blocks.
    volume = space_to_depth(x[:, :, None].expand(-1, -1, 2, -1, -1), 2)[:, :, 0]
    assert torch.equal(volume.reshape(1, 2, 2, 4, 3, 2)[:, :, 0].reshape(1, 8, 3, 2), F.pixel_unshuffle(x, 2))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_folded_unet_keeps_any_input_size(dim: int) -> None:
    net = UNet(1, 3, dim=dim, width=2, depth=1, fold=2)
    assert net.stride == 4
    assert net(torch.zeros(2, 1, *([9] * dim))).shape == (2, 3, *([9] * dim))


def test_a_folded_unet_sees_single_positions() -> None:
    net = UNet(1, 2, width=2, depth=1, fold=2, norm="none").eval()
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 3] = 1
    assert not torch.allclose(net(x)[0, :, 3, 3], net(x)[0, :, 2, 2])
