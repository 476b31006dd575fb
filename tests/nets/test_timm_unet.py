"""timm's nets as encoders: shapes, strides, norms, weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ics_apps.nets import TimmUNet
from ics_apps.norms import NormError

timm = pytest.importorskip("timm")

# Strides that begin at 2 and at 4, and maps with channels last (swin).
ENCODERS = {
    "resnet10t": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"strict_img_size": False, "depths": (1, 1, 1, 1), "embed_dim": 24},
}


def small(**options):
    torch.manual_seed(0)
    return TimmUNet(1, 2, **({"encoder": "resnet10t", "width": 8} | options))


def kinds(module):
    return {type(child).__name__ for child in module.modules() if type(child).__name__.endswith("Norm")}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("norm", ["batch", "group", "rms"])
def test_any_encoder_trains_a_step_at_an_odd_size(encoder, norm):
    net = small(encoder=encoder, encoder_options=ENCODERS[encoder], norm=norm, normalize_streams="both")
    y = net(torch.randn(2, 1, 65, 50))
    assert (y.shape, net.stride) == ((2, 2, 65, 50), 32)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_norms_of_the_encoder_are_converted_unless_kept():
    assert kinds(small(norm="group").encoder) == {"GroupNorm"}
    kept = small(norm="group", site_norms={"encoder": "keep"})
    assert "GroupNorm" not in kinds(kept.encoder)
    assert kinds(kept.decoder) == {"GroupNorm"}


def test_the_decoder_takes_blocks_gates_and_stream_norms():
    net = small(
        block="residual", attention="gate", normalize_streams="up", site_norms={"up": "instance", "gate": "none"}
    )
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 2, 64, 64)
    assert kinds(net.decoder[0].concat) == {"InstanceNorm"}


def test_the_finest_map_of_stride_four_is_refined_in_two_doublings():
    two, one = small(encoder="convnext_atto"), small()
    assert [sum(isinstance(m, nn.Upsample) for m in net.refine.modules()) for net in (two, one)] == [2, 1]


@pytest.fixture
def file(tmp_path):
    model = timm.create_model("resnet10t")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth", model


def test_a_local_file_gives_the_encoder_its_weights(file):
    path, model = file
    net = small(pretrained=path)
    assert torch.equal(net.encoder.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    # Three colours become one channel: a gray image gives what it gave in all three.
    torch.testing.assert_close(net.encoder.conv1[0].weight, model.conv1[0].weight.sum(1, keepdim=True))


def test_a_file_of_another_net_is_refused(tmp_path):
    torch.save({"other.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="none of its 1 tensors is one of this encoder"):
        small(pretrained=tmp_path / "other.pth")


def test_weights_without_a_network_are_said_to_need_one(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ValueError, match=r"'resnet10t' could not be loaded from the network .*a local file .* or false"
    ):
        small(pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet81"}, "encoder 'resnet81' is no model of timm; did you mean 'resnet"),
        ({"dim": 3}, "dim is 3, but timm's encoders are for images"),
        ({"pretrained": "nowhere.pth"}, "pretrained is 'nowhere.pth', which is no file"),
        ({"encoder_options": {"no_such": 1}}, "timm cannot build 'resnet10t' as an encoder of 1 channels"),
        ({"norm": {"name": "group", "num_groups": 7}}, "encoder 'resnet10t': .*'keep'"),
        ({"site_norms": {"bottleneck": "none"}}, "unknown site 'bottleneck'"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises((ValueError, NormError), match=message):
        small(**options)
