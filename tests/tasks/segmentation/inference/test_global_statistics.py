from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.nets import UNet
from ics_apps.norms import NormSpec, list_norms, norm_entry
from ics_apps.tasks.segmentation.inference.given_moments import fixed_statistics
from ics_apps.tasks.segmentation.inference.global_statistics import core_of_map, global_statistics
from ics_apps.tasks.segmentation.inference.receptive_field import needed_halo
from ics_apps.tasks.segmentation.inference.sliding_window import tiled
from ics_apps.tasks.segmentation.inference.windows import Tile, tiles

POOLING = [
    name
    for name in list_norms()
    if "S" in norm_entry(name).pools and 2 in norm_entry(name).dims and not norm_entry(name).needs_condition
]


def image_of(*size: int) -> Tensor:
    return torch.randn(2, 1, *size) * torch.linspace(0.5, 3, size[-1]) + torch.linspace(0, 2, size[-1])


def by_tiles(net: UNet, image: Tensor) -> tuple[Tensor, int]:
    stride = net.stride
    halo = needed_halo(net, image.shape[1], image.dim() - 2)
    roi = [2 * -(-h // stride) * stride + 4 * stride for h in halo]
    parts = tiles(image.shape[2:], roi, halo, stride)
    assert len(parts) > 1
    found = global_statistics(net, image, parts, stride)
    with fixed_statistics(net, found.tables):
        return tiled(image, net, parts), found.sweeps


@torch.no_grad()
@pytest.mark.parametrize("name", POOLING)
def test_tiles_with_the_statistics_of_the_image_agree_with_the_whole(name: str) -> None:
    net = UNet(1, 2, dim=2, norm=name, width=8, depth=1).eval()
    for parameter in net.parameters():
        parameter.mul_(0.9).add_(0.05 * torch.rand_like(parameter))
    # An odd size: the net pads the far end, and the norms see the padding.
    image = image_of(37, 131 if name == "divisive" else 50)
    found, _ = by_tiles(net, image)
    assert torch.allclose(found, net(image), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"depth": 2, "normalize_streams": "both"},
        {"fold": 2, "depth": 1},
        {"order": "conv-act-norm", "depth": 1},
        {"site_norms": {"encoder": "batch"}, "depth": 2},
    ],
)
def test_whatever_the_shape_of_the_net(options: dict[str, Any]) -> None:
    net = UNet(1, 2, dim=1, norm="instance", width=4, **options).double().eval()
    image = image_of(203).double()
    found, _ = by_tiles(net, image)
    assert torch.allclose(found, net(image), rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("dim", "size"), [(1, (101,)), (3, (20, 9, 33))])
def test_in_every_rank(dim: int, size: tuple[int, ...]) -> None:
    net = UNet(1, 2, dim=dim, norm="group", width=8, depth=1).double().eval()
    image = image_of(*size).double()
    found, _ = by_tiles(net, image)
    assert torch.allclose(found, net(image), rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(
    ("norm", "streams", "sweeps"),
    [("batch", "none", 0), ("instance", "none", 10), ("instance", "skip", 10), ("instance", "up", 12)],
)
def test_a_sweep_serves_norms_side_by_side_and_a_chain_one_by_one(norm: NormSpec, streams: Any, sweeps: int) -> None:
    """Depth 2 has ten norms in a chain; skip norms run beside the first norm of the chain that they do not feed."""
    net = UNet(1, 2, dim=1, norm=norm, width=2, depth=2, normalize_streams=streams).eval()
    assert by_tiles(net, image_of(200))[1] == sweeps


@torch.no_grad()
def test_the_moments_are_those_of_the_image() -> None:
    net = nn.Sequential(nn.InstanceNorm1d(1))
    image = image_of(30)
    table = global_statistics(net, image, tiles((30,), (8,), (2,), 1), 1).tables["0"]
    var, mean = torch.var_mean(image.double(), 2, correction=0)
    assert torch.allclose(table.mean, mean)
    assert torch.allclose(table.var, var)
    assert table.positions == 30


def test_an_image_with_nan_and_a_norm_called_twice_are_refused() -> None:
    parts = tiles((8,), (4,), (0,), 1)
    norm = nn.InstanceNorm1d(1)
    with pytest.raises(ValueError, match="values that are not finite"):
        global_statistics(norm, torch.full((1, 1, 8), torch.nan), parts, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(2 * x)

    with pytest.raises(ValueError, match="'norm' is called twice"):
        global_statistics(Twice(), torch.randn(1, 1, 8), parts, 1)


def test_a_net_that_overflows_is_refused_and_not_swept_for_ever() -> None:
    net = nn.Sequential(nn.InstanceNorm1d(1), nn.Hardtanh(), _Infinite(), nn.InstanceNorm1d(1))
    with pytest.raises(ValueError, match="the input of layer '3' is not finite"):
        global_statistics(net, torch.randn(1, 1, 8), tiles((8,), (4,), (0,), 1), 1)


class _Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.inf - torch.inf


def test_a_map_that_is_no_fraction_of_the_window_is_refused() -> None:
    tile = Tile((slice(0, 16),), (slice(0, 8),))
    assert core_of_map([4], tile, 4, "norm") == (slice(0, 2),)
    with pytest.raises(ValueError, match="its map is no fraction of the image"):
        core_of_map([13], tile, 4, "norm")
