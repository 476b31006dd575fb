from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ics_apps.nets import UNet
from ics_apps.tasks.segmentation.inference.receptive_field import needed_halo, net_stride
from ics_apps.tasks.segmentation.inference.sliding_window import tiled
from ics_apps.tasks.segmentation.inference.windows import tiles


def test_stacked_convolutions_look_as_far_as_their_kernels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, (3, 7), padding=(1, 3)), nn.ReLU(), nn.Conv2d(2, 1, 5, padding=2, dilation=1))
    assert needed_halo(net, 1, 2) == [1 + 2, 3 + 2]


def test_a_net_that_looks_at_one_position_needs_no_halo() -> None:
    assert needed_halo(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.GELU()), 1, 2) == [0, 0]


@pytest.mark.parametrize(("depth", "halo"), [(1, 8), (2, 22), (3, 46), (4, 94)])
def test_a_u_net_with_cores_on_its_grid_needs_six_times_its_stride(depth: int, halo: int) -> None:
    """By hand at depth 2: 2 at the finest level reaches 1 coarse position, 1 + 2 reaches 2, 2 + 2 = 4, doubled 8 + 2,
    doubled 20 + 2. Cores at any place need 7 * 2^d - 5 = 23, as the first may then lie inside a coarse position."""
    assert needed_halo(UNet(1, 2, dim=1, depth=depth, width=2), 1, 1) == [halo]
    assert halo < 7 * 2**depth - 4


@pytest.mark.parametrize(
    "options", [{}, {"fold": 2}, {"upsample": "nearest"}, {"norm": "layer_c"}, {"normalize_streams": "both"}]
)
def test_the_halo_found_is_enough_and_one_position_less_is_not(options: dict[str, Any]) -> None:
    net = UNet(1, 2, dim=1, depth=2, width=4, **options).double().eval()
    (halo,) = needed_halo(net, 1, 1)
    image = torch.randn(1, 1, 203, dtype=torch.float64)
    size = 2 * halo + 3 * net.stride
    with torch.no_grad():
        whole = net(image)
        exact = tiled(image, net, tiles((203,), (size,), (halo,), net.stride))
        short = tiled(image, net, tiles((203,), (size,), (halo - net.stride,), net.stride))
    assert torch.allclose(exact, whole, rtol=0, atol=1e-12)
    assert (short - whole).abs().max() > 1e-12


def test_norms_that_pool_positions_do_not_count() -> None:
    assert needed_halo(UNet(1, 2, dim=1, depth=1, width=8, norm="group"), 1, 1) == [8]


def test_a_net_that_pools_the_whole_image_is_refused() -> None:
    class Gate(nn.Module):
        stride = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean((2, 3), keepdim=True)

    with pytest.raises(ValueError, match="Gate looks at the whole image"):
        needed_halo(Gate(), 1, 2)


def test_the_net_is_left_as_it_was() -> None:
    net = UNet(1, 2, dim=1, depth=1, width=2, norm="instance").train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    needed_halo(net, 1, 1)
    assert net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net(torch.randn(1, 1, 8)).isfinite().all()


def test_the_stride_is_the_nets_own_else_32() -> None:
    assert net_stride(UNet(1, 2, depth=2, fold=2)) == 8
    assert net_stride(nn.Conv2d(1, 1, 3, stride=1)) == 32
