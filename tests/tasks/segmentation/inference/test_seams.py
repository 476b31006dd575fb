from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ics_apps.nets import UNet
from ics_apps.tasks.segmentation.inference.receptive_field import needed_halo
from ics_apps.tasks.segmentation.inference.seams import SeamScore, seam_score


def score(norm: str) -> SeamScore:
    torch.manual_seed(0)
    net = UNet(1, 2, dim=2, depth=1, width=8, norm=norm).double().eval()
    halo = needed_halo(net, 1, 2)
    # Louder on one side, as under a bias field: a window's statistics differ from its neighbour's.
    image = torch.randn(1, 1, 48, 64, dtype=torch.float64) * torch.linspace(0.5, 3, 64)
    with torch.no_grad():
        return seam_score(image, lambda x: net(x).softmax(1), [32, 32], halo, net.stride)


@pytest.mark.parametrize("norm", ["none", "batch", "batch_renorm", "layer_c", "rms", "dyt"])
def test_norms_without_statistics_of_the_window_have_no_seams(norm: str) -> None:
    assert score(norm).mismatch < 1e-12


@pytest.mark.parametrize("norm", ["instance", "group", "layer_chw", "filter_response"])
def test_norms_that_pool_positions_have_seams(norm: str) -> None:
    assert score(norm).mismatch > 1e-3


def test_a_step_at_every_line_is_seen_by_the_ratio_of_edges() -> None:
    """Each window says its own mean: steps at lines only, so nothing is elsewhere."""
    image = torch.arange(64.0).reshape(1, 1, 64)

    def own_mean(x: Tensor) -> Tensor:
        return x.mean(2, keepdim=True).expand_as(x) + 0.5 * x

    found = seam_score(image, own_mean, [16], [0], 4)
    assert found.edge_ratio == pytest.approx((16 + 0.5) / 0.5)


def test_a_smooth_prediction_has_the_ratio_one() -> None:
    assert seam_score(torch.arange(64.0).reshape(1, 1, 64), nn.Identity(), [16], [0], 4).edge_ratio == pytest.approx(1)
    assert math.isnan(seam_score(torch.zeros(1, 1, 64), nn.Identity(), [16], [0], 4).edge_ratio)


def test_an_image_of_one_tile_has_no_seams_to_measure() -> None:
    with pytest.raises(ValueError, match="is one tile"):
        seam_score(torch.zeros(1, 1, 8), nn.Identity(), [16], [0], 4)
