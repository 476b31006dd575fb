from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import NormError, list_norms, make_norm, norm_context, norm_entry
from ics_apps.tasks.segmentation.inference.given_moments import Moments, fixed_statistics, pooling_norms

CHANNELS = 8
CONDITIONS: dict[str, Any] = {
    "label": torch.tensor([1, 0]),
    "domain": torch.tensor([0, 1]),
    "style": torch.randn(1, CHANNELS, 4, 4),
}


def trained(name: str) -> nn.Module:
    """A norm in evaluation mode whose parameters and buffers are none of the special values they start from."""
    norm = make_norm(name, CHANNELS, 2).eval()
    generator = torch.Generator().manual_seed(0)
    for value in [*norm.parameters(), *norm.buffers()]:
        if value.is_floating_point():
            value.data.mul_(0.5).add_(0.4 * torch.rand(value.shape, generator=generator))
    return norm


def norms_of_images() -> list[str]:
    return [name for name in list_norms() if 2 in norm_entry(name).dims and not norm_entry(name).acts_on_weight]


@pytest.mark.parametrize("name", [name for name in norms_of_images() if name not in ("virtual_batch", "divisive")])
def test_told_the_moments_of_the_whole_every_norm_treats_a_part_as_it_treats_the_whole(name: str) -> None:
    net = nn.Sequential(trained(name))
    x = torch.randn(2, CHANNELS, 12, 10) * torch.linspace(0.5, 3, 10) + torch.linspace(-1, 2, 10)
    var, mean = torch.var_mean(x.double().flatten(2), 2, correction=0)
    with torch.no_grad(), norm_context(**CONDITIONS):
        whole = net(x)
        with fixed_statistics(net, dict.fromkeys(pooling_norms(net), Moments(mean, var, 120))):
            part = net(x[..., :4])
        alone = net(x[..., :4])
    assert torch.allclose(part, whole[..., :4], atol=2e-5)
    if pooling_norms(net):
        assert (alone - whole[..., :4]).abs().max() > 1e-3


def test_a_norm_that_cannot_be_told_says_why() -> None:
    with pytest.raises(ValueError, match=r"'0' \(VirtualBatchNorm\) cannot take .* reference inside its own call"):
        pooling_norms(nn.Sequential(make_norm("virtual_batch", CHANNELS)))
    with pytest.raises(ValueError, match="it fixes the size of its input"):
        pooling_norms(nn.Sequential(nn.LayerNorm([3, 4, 4])))

    class Activated(nn.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return torch.relu(super().forward(input))

    with pytest.raises(ValueError, match="changes the forward pass of a known norm"):
        pooling_norms(nn.Sequential(Activated(2, CHANNELS)))


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm2d(CHANNELS), nn.InstanceNorm2d(CHANNELS, affine=True), nn.GroupNorm(2, CHANNELS)],
    ids=repr,
)
def test_layers_of_torch_are_told_as_well(layer: nn.Module) -> None:
    net = nn.Sequential(layer).eval()
    x = torch.randn(2, CHANNELS, 6, 6)
    var, mean = torch.var_mean(x.double().flatten(2), 2, correction=0)
    with fixed_statistics(net, {"0": Moments(mean, var, 36)}):
        assert torch.allclose(net(x[..., :3]), layer(x[..., :3]))
        found = net(x)
    assert torch.allclose(found, net(x), atol=1e-6)


def test_instance_norm_with_running_statistics_pools_nothing_in_evaluation() -> None:
    assert not pooling_norms(nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True)).eval())


def test_after_the_block_and_after_an_error_the_net_is_as_before() -> None:
    net = nn.Sequential(nn.GroupNorm(1, 2))
    x = torch.randn(1, 2, 5)
    before = net(x)
    table = Moments(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), 5)
    with pytest.raises(NormError), fixed_statistics(net, {"0": table}):
        raise NormError("any")
    assert torch.equal(net(x), before)
    assert list(net[0].__dict__) == list(nn.GroupNorm(1, 2).__dict__)
