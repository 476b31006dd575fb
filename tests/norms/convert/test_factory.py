"""Our norms as `norm_layer=` of timm and torchvision."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from ics_apps.norms import NormError
from ics_apps.norms.convert import norm_layer
from ics_apps.norms.convert.adapters import NormAct

ONE_GROUP = {"name": "group", "num_groups": 1}


@pytest.mark.parametrize(
    ("name", "act"),
    [("resnet10t", None), ("efficientnet_b0", nn.SiLU), ("resnetv2_18", nn.ReLU), ("regnetx_002", nn.ReLU)],
)
def test_a_timm_net_with_our_batch_norm_is_the_net_itself(name, act):
    ours = timm.create_model(name, num_classes=5, norm_layer=norm_layer("batch", act=act)).eval()
    theirs = timm.create_model(name, num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("spec", [ONE_GROUP, "rms", "instance", "none", "dyt"])
def test_timm_takes_norms_of_every_family(spec):
    net = timm.create_model("resnet10t", num_classes=5, norm_layer=norm_layer(spec))
    assert net(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("spec", ["layer", "rms", "batch", {"name": "group", "num_groups": 4}, "dyt"])
def test_timm_transformers_take_norms_of_tokens_also_for_queries_and_keys(spec):
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5, qk_norm=True, norm_layer=norm_layer(spec, "tokens")
    )
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_takes_them(name):
    net = getattr(torchvision.models, name)(norm_layer=norm_layer(ONE_GROUP))
    assert net(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_a_net_that_expects_norm_and_activation_refuses_a_norm_alone():
    with pytest.raises(NormError, match=r"give the activation, norm_layer\(\.\.\., act=torch\.nn\.ReLU\)"):
        timm.create_model("efficientnet_b0", norm_layer=norm_layer("batch"))


def test_a_norm_that_contains_its_activation_needs_none():
    net = timm.create_model("efficientnet_b0", num_classes=5, norm_layer=norm_layer("filter_response"))
    assert not any(isinstance(module, NormAct) for module in net.modules())


def test_the_activation_is_left_out_on_request_and_dropout_comes_before_it():
    build = norm_layer("batch", act=nn.ReLU)
    assert type(build(8, apply_act=False)).__name__ == "BatchNorm2d"
    assert [type(part) for part in build(8, drop_layer=nn.Dropout).after] == [nn.Dropout, nn.ReLU]


def test_eps_of_the_caller_is_taken_unless_the_spec_sets_it():
    assert norm_layer("batch")(8, eps=1e-3).eps == 1e-3
    assert norm_layer({"name": "batch", "eps": 1e-4})(8, eps=1e-3).eps == 1e-4
    assert isinstance(norm_layer("none")(8, eps=1e-3), nn.Identity)


def test_device_and_type_of_the_caller_are_taken():
    norm = norm_layer("batch")(8, device="meta", dtype=torch.float64)
    assert (norm.weight.device.type, norm.weight.dtype) == ("meta", torch.float64)


def test_a_wrong_norm_is_refused_when_it_is_named():
    with pytest.raises(NormError, match="unknown norm 'gruop'"):
        norm_layer("gruop")
