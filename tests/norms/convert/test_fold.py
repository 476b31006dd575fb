"""Batch norms in evaluation mode folded into the layers before them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ics_apps.norms import make_norm
from ics_apps.norms.convert import convert_norms, fold_batch_norms

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def with_statistics(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            with torch.no_grad():
                for tensor in (module.weight, module.bias):
                    if tensor is not None:
                        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def largest_change(model, x, **options):
    folded = copy.deepcopy(model)
    report = fold_batch_norms(folded, **options)
    with torch.no_grad():
        y = model(x)
        return float((folded(x) - y).abs().max() / y.abs().max()), report, folded


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@settings(max_examples=20, deadline=None)
@given(dim=st.sampled_from([1, 2, 3]), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_folding_is_exact_also_into_grouped_and_transposed_convolutions(transposed, bias, dim, groups, seed):
    torch.manual_seed(seed)
    kind = (TRANSPOSED if transposed else CONVS)[dim]
    net = nn.Sequential(kind(4, 8, 2, stride=2, groups=groups, bias=bias), NORMS[dim](8)).double()
    x = torch.randn(2, 4, *[5] * dim, dtype=torch.float64)
    change, report, folded = largest_change(with_statistics(net, seed), x)
    assert change < 1e-12
    assert report.rows[0].new == "folded into 0"
    assert isinstance(folded[1], nn.Identity)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 1e-2}])
def test_folding_into_a_linear_layer_is_exact(options):
    net = with_statistics(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, **options)).double())
    assert largest_change(net, torch.randn(4, 3, dtype=torch.float64))[0] < 1e-12


@pytest.mark.parametrize("name", ["batch", "batch_frozen", "sync_batch"])
def test_our_batch_norms_are_folded_for_images_and_tokens(name):
    for layer, dim, shape in ((nn.Conv2d(3, 8, 3), 2, (2, 3, 5, 5)), (nn.Linear(3, 8), "tokens", (2, 5, 3))):
        net = with_statistics(nn.Sequential(layer, make_norm(name, 8, dim)).double())
        change, report, _ = largest_change(net, torch.randn(shape, dtype=torch.float64))
        assert change < 1e-12
        assert len(report.replaced) == 1


def test_a_fused_activation_stays():
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), timm.layers.BatchNormAct2d(8, act_layer=nn.SiLU)))
    change, _, folded = largest_change(net, torch.randn(2, 3, 5, 5))
    assert change < 1e-6
    assert isinstance(folded[1], nn.SiLU)


@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 64, 64)], ids=["symbolic", "example"])
def test_a_resnet_is_folded_to_1e_6(example):
    torch.manual_seed(0)
    net = with_statistics(timm.create_model("resnet10t", num_classes=5))
    change, report, folded = largest_change(net, torch.randn(2, 3, 64, 64), example=example)
    assert change < 1e-6
    assert report.kept == ()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


class Branch(nn.Module):
    """A convolution whose output is normalised and used as it is too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


class Shown(Branch):
    """A convolution whose output is normalised and returned too."""

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x), x


class Again(Branch):
    """A convolution that runs twice, once without its norm."""

    def forward(self, x):
        return self.norm(self.conv(x)) + F.relu(self.conv(-x))


class Functional(Branch):
    """Something between convolution and norm."""

    def forward(self, x):
        return self.norm(F.relu(self.conv(x)))


@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 5, 5)], ids=["symbolic", "example"])
@pytest.mark.parametrize("kind", [Branch, Shown, Again, Functional])
def test_a_norm_stays_where_its_layer_does_not_feed_it_alone_and_directly(kind, example):
    net = with_statistics(kind())
    report = fold_batch_norms(net, example=example)
    assert [row.note for row in report.kept] == ["no convolution or linear layer feeds it directly and it alone"]


def test_a_norm_in_training_mode_stays():
    report = fold_batch_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    assert report.kept[0].note == "it is in training mode; call model.eval() first"


def test_a_norm_without_running_statistics_stays():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)).eval()
    assert fold_batch_norms(net).kept[0].note == "it has no running statistics"


def test_a_norm_with_hooks_stays():
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    net[1].register_forward_hook(lambda module, args, output: None)
    assert "hooks" in fold_batch_norms(net).kept[0].note


def test_layers_that_change_their_own_weight_are_not_folded_into():
    net = with_statistics(nn.Sequential(timm.layers.StdConv2d(3, 8, 3), nn.BatchNorm2d(8)))
    assert len(fold_batch_norms(net).kept) == 1
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    assert len(fold_batch_norms(with_statistics(nn.Sequential(conv, nn.BatchNorm2d(8)))).kept) == 1


def test_a_model_that_cannot_be_traced_symbolically_is_folded_by_an_example():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x):
            return self.norm(self.conv(self.stem(x) if x.sum() > 0 else x))

    net, x = with_statistics(Asks()), torch.ones(2, 3, 5, 5)
    _, report, _ = largest_change(net, x)
    assert [row.name for row in report.replaced] == ["stem.1"]
    assert report.notes == ("pass `example`, an input, to find layers by running the model",)
    change, report, _ = largest_change(net, x, example=x)
    assert change < 1e-6
    assert len(report.replaced) == 2


def test_other_norms_are_not_touched():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)).eval()
    assert fold_batch_norms(net).rows == ()


def test_a_converted_model_is_folded():
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).double())
    convert_norms(net, "batch_frozen")
    assert largest_change(net, torch.randn(2, 3, 5, 5, dtype=torch.float64))[0] < 1e-12
