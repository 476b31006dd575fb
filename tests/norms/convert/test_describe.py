"""Norm classes of other libraries: what each is taken for, and what is carried out of it."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
import torchvision
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from ics_apps.norms.convert import convert_norms
from ics_apps.norms.convert.describe import OldNorm, describe

IMAGE = (2, 8, 3, 4)
ROWS = (2, 3, 4, 8)
GROUPS_OF_4 = {"num_groups": 2}


def with_values(norm):
    """The norm in evaluation mode with no value at its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise if "var" in name else tensor + noise)
    return norm.eval()


def same_after(norm, to, shape):
    """Largest difference between a norm and what it is converted to."""
    x, old = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.3, copy.deepcopy(norm)
    net = nn.Sequential(norm)
    report = convert_norms(net, to, where="0")
    assert report.replaced or report.kept[0].note == "it is this norm already"
    with torch.no_grad():
        return float((net(x.clone()) - old(x.clone())).abs().max())


@pytest.mark.parametrize(
    ("old", "to", "shape"),
    [
        (timm.layers.BatchNormAct2d(8), "batch", IMAGE),
        (timm.layers.BatchNormAct2d(8, act_layer=nn.SiLU), "batch_frozen", IMAGE),
        (timm.layers.FrozenBatchNormAct2d(8), "batch_frozen", IMAGE),
        (timm.layers.SplitBatchNorm2d(8), "batch", IMAGE),
        (timm.layers.GroupNormAct(8, 2), "group", IMAGE),
        (timm.layers.GroupNorm1(8), "layer_chw", IMAGE),
        (timm.layers.LayerNormAct2d(8), "layer_c", IMAGE),
        (timm.layers.LayerNorm2d(8), "layer_c", IMAGE),
        (timm.layers.LayerNormFp32(8), "layer", ROWS),
        (timm.layers.RmsNormAct2d(8), "rms", IMAGE),
        (timm.layers.RmsNorm(8), "rms", ROWS),
        (GlobalResponseNorm(8, channels_last=False), "global_response", IMAGE),
        (GlobalResponseNorm(8), "global_response", ROWS),
        (timm.layers.EvoNorm2dB0(8), "evonorm_b0", IMAGE),
        (timm.layers.FilterResponseNormTlu2d(8), "filter_response", IMAGE),
        (torchvision.ops.FrozenBatchNorm2d(8), "batch", IMAGE),
        (LlamaRMSNorm(8), "rms", ROWS),
        (T5LayerNorm(8), "rms", ROWS),
        (VitDetLayerNorm(8), "layer_c", IMAGE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_foreign_norm_is_ours_of_the_same_name(old, to, shape):
    assert same_after(with_values(old), to, shape) < 2e-6


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU])
def test_fused_activation_and_dropout_are_carried_over(activation):
    old = timm.layers.GroupNormAct(8, 2, act_layer=activation, drop_layer=lambda: nn.Dropout(0.25))
    net = nn.Sequential(old)
    convert_norms(net, "batch")
    assert [type(layer) for layer in net[0].after] == [nn.Dropout, activation]
    convert_norms(net, "instance")
    assert [type(layer) for layer in net[0].after] == [nn.Dropout, activation]


def test_a_norm_that_contains_its_activation_takes_the_place_of_a_fused_one():
    net = nn.Sequential(timm.layers.BatchNormAct2d(8))
    convert_norms(net, "filter_response")
    assert type(net[0]).__name__ == "FilterResponseNorm"


def test_an_activation_inside_a_formula_is_replaced_and_told():
    net = nn.Sequential(timm.layers.EvoNorm2dS0(8, groups=2), timm.layers.EvoNorm2dS0(8, groups=2, apply_act=False))
    report = convert_norms(net, "batch")
    assert report.rows[0].note.startswith("its activation is part of its formula; SiLU takes its place")
    assert isinstance(net[0].after[0], nn.SiLU)
    assert type(net[1]).__name__ == "BatchNorm2d"


def test_inplace_abn_becomes_norm_and_activation():
    old = timm.layers.InplaceAbn(8, act_layer="leaky_relu", act_param=0.2)
    net = nn.Sequential(old, timm.layers.InplaceAbn(8, act_layer="identity"))
    convert_norms(net, "batch")
    assert net[0].after[0].negative_slope == 0.2
    assert type(net[1]).__name__ == "BatchNorm2d"


def test_a_gain_of_1_plus_weight_is_carried_as_a_gain():
    old = with_values(GemmaRMSNorm(8))
    assert describe(old).gain.tolist() == pytest.approx((1 + old.weight).tolist())
    assert same_after(old, "rms", ROWS) < 2e-6


def test_a_gated_rms_norm_is_left_with_the_reason():
    assert "a second argument, 'gate'" in describe(MambaRMSNormGated(8, group_size=8))


def test_an_unknown_class_that_computes_a_layer_norm_is_recognised_at_either_end():
    class HouseLayerNorm(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
            self.axis, self.epsilon = axis, 1e-5

        def forward(self, x):
            rows = x.movedim(self.axis, -1)
            return nn.functional.layer_norm(rows, (8,), self.weight, self.bias, self.epsilon).movedim(-1, self.axis)

    for axis, first in ((1, True), (-1, False)):
        known = describe(HouseLayerNorm(axis))
        assert isinstance(known, OldNorm)
        assert (known.known.entry, known.known.first, known.options["eps"]) == ("layer_c", first, 1e-5)


def test_an_unknown_class_that_computes_something_else_is_left_with_the_reason():
    class StrangeNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return x * self.weight

    assert "class StrangeNorm is not known" in describe(StrangeNorm())


def test_a_subclass_with_its_own_forward_is_not_taken_for_its_parent():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.BatchNorm2d):
        pass

    assert "class Doubled is not known" in describe(Doubled(8))
    assert describe(Renamed(8)).known.entry == "batch"


@pytest.mark.parametrize("block", [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(8)), nn.Identity()])
def test_what_is_no_norm_is_not_described(block):
    assert describe(block) is None
