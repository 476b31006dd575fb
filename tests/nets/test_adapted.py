"""Nets of other packages behind our four arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ics_apps.nets import AdaptedNet
from ics_apps.norms import NormError

ARGUMENTS = {"rank": "{dim}", "sizes": {"inputs": ["{in_channels}", 8], "outputs": "{num_classes}"}}


class Foreign(nn.Module):
    """As other packages have them: other names, a fixed norm, sizes in fours, a dict for an output."""

    def __init__(self, rank, sizes):
        super().__init__()
        self.rank = rank
        first, width = sizes["inputs"]
        self.down = nn.Sequential(nn.Conv2d(first, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU())
        self.up = nn.ConvTranspose2d(width, sizes["outputs"], 4, 4)

    def forward(self, x):
        assert x.shape[2] % 4 == x.shape[3] % 4 == 0
        return {"out": self.up(self.down(x)), "aux": x}


class Counting(dict):
    pass


def adapted(**options):
    given = {"make": Foreign, "arguments": ARGUMENTS, "stride": 4, "output": "out"} | options
    return AdaptedNet(1, 3, 2, options.pop("norm", "batch"), **{k: v for k, v in given.items() if k != "norm"})


def test_placeholders_become_the_numbers_of_the_data():
    net = adapted()
    assert (net.net.rank, net.net.down[0].in_channels, net.net.up.out_channels) == (2, 1, 3)


def test_a_size_that_the_net_refuses_is_padded_and_cropped():
    assert adapted()(torch.zeros(2, 1, 13, 10)).shape == (2, 3, 13, 10)


def test_its_norms_are_converted_unless_kept():
    assert type(adapted(norm="group").net.down[1]).__name__ == "GroupNorm"
    assert type(adapted(norm="group", where="keep").net.down[1]) is nn.BatchNorm2d


def test_a_step_reaches_all_parameters():
    net = adapted(norm="instance")
    net(torch.randn(2, 1, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_function_annotated_with_a_module_makes_nets_too():
    net = AdaptedNet(
        3,
        2,
        make="torchvision.models.segmentation.lraspp_mobilenet_v3_large",
        arguments={"weights": None, "weights_backbone": None, "num_classes": "{num_classes}"},
        where="keep",
        output="out",
    ).eval()
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"make": "torch.nn.Conv2x"}, "torch.nn has no 'Conv2x'; did you mean 'Conv2d'"),
        ({"make": "no_such_package.Net"}, "module cannot be imported: No module named 'no_such_package'"),
        ({"make": "os.system"}, "neither a torch module's class nor a function annotated with one"),
        ({"make": "Net"}, "module cannot be imported"),
        ({"arguments": {"rank": 2}}, r"Foreign cannot be made from \{'rank': 2\}: .*missing"),
        ({"arguments": {"rank": "{dims}"}}, r"arguments hold '\{dims\}'; did you mean 'dim'\?"),
        ({"make": Counting, "arguments": {}}, "made a Counting, not a torch module"),
        ({"norm": {"name": "group", "num_groups": 7}}, "Foreign: .*'keep'"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(options, message):
    with pytest.raises((ValueError, NormError), match=message):
        adapted(**options)


def test_an_output_that_is_no_tensor_asks_which_entry_is_meant():
    with pytest.raises(ValueError, match="output is a dict with the keys 'out', 'aux'; say by `output`"):
        adapted(output=None)(torch.zeros(1, 1, 8, 8))


def trained_a_step(net: nn.Module, x: Tensor) -> Tensor:
    y = net(x)
    y.square().mean().backward()
    return y


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_monai(dim, norm):
    pytest.importorskip("monai")
    arguments = {
        "spatial_dims": "{dim}",
        "in_channels": "{in_channels}",
        "out_channels": "{num_classes}",
        "channels": [8, 16],
        "strides": [2],
    }
    net = AdaptedNet(1, 2, dim, norm, make="monai.networks.nets.UNet", arguments=arguments, stride=2)
    assert trained_a_step(net, torch.randn(2, 1, *[9] * dim)).shape == (2, 2, *[9] * dim)


@pytest.mark.parametrize("norm", ["batch", "group", "rms"])
def test_segmentation_models_pytorch(norm):
    pytest.importorskip("segmentation_models_pytorch")
    arguments = {
        "encoder_name": "resnet18",
        "encoder_weights": None,
        "in_channels": "{in_channels}",
        "classes": "{num_classes}",
    }
    net = AdaptedNet(1, 2, 2, norm, make="segmentation_models_pytorch.Unet", arguments=arguments, stride=32)
    assert trained_a_step(net, torch.randn(2, 1, 40, 33)).shape == (2, 2, 40, 33)
