"""Norms of a model replaced in place: which, by what, with what said about it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ics_apps.nets.unet import UNet
from ics_apps.norms import NormError, list_norms, make_norm, norm_context, norm_entry
from ics_apps.norms.convert import convert_norms

FOUR = {"name": "group", "num_groups": 4}


def conv_net(channels=16):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3),
        nn.BatchNorm2d(channels),
    )


def trained(model, seed=0):
    """The model with no value at its start, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.copy_(0.5 + noise if "var" in name else tensor + noise / 4)
    return model.eval()


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_every_norm_is_replaced_and_the_rest_is_not():
    net = conv_net()
    report = convert_norms(net, FOUR)
    assert kinds(net) == ["Conv2d", "GroupNorm", "ReLU", "Conv2d", "GroupNorm"]
    assert [row.name for row in report.replaced] == ["1", "4"]
    assert net[1].num_groups == 4
    assert report.kept == ()


@pytest.mark.parametrize(
    ("where", "replaced"),
    [
        (nn.BatchNorm2d, ["1", "4"]),
        ((nn.LayerNorm, nn.BatchNorm2d), ["1", "4"]),
        ("1", ["1"]),
        (["1", nn.LayerNorm], ["1"]),
        ("[2-9]", ["4"]),
        (lambda name, norm: name == "4" and norm.num_features == 16, ["4"]),
    ],
)
def test_where_chooses_by_class_pattern_or_function(where, replaced):
    net = conv_net()
    assert [row.name for row in convert_norms(net, "group", where=where).replaced] == replaced
    assert [name for name, layer in net.named_children() if isinstance(layer, nn.GroupNorm)] == replaced


def test_where_that_names_no_norm_is_refused_with_the_nearest():
    net = nn.ModuleDict({"stem": conv_net()})
    with pytest.raises(NormError, match=r"where='stem.11' names none of the model's 2 norms; did you mean 'stem.1'"):
        convert_norms(net, "group", where="stem.11")
    with pytest.raises(NormError, match="of class BatchNorm2d"):
        convert_norms(net, "group", where=nn.LayerNorm)
    with pytest.raises(NormError, match=r"where is a class, a name pattern, .* got 3"):
        convert_norms(net, "group", where=3)


def test_impossible_layers_are_all_named_and_nothing_is_changed():
    net = nn.Sequential(conv_net(16), conv_net(6)[:2], conv_net(6)[:2])
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(NormError, match=r"2 of 4 norms, and nothing was changed. 1\.1, 2\.1: .*6 channels.*8 equal"):
        convert_norms(net, "group")
    assert {type(m) for m in net.modules() if "Norm" in type(m).__name__} == {nn.BatchNorm2d}
    assert net.state_dict().keys() == before.keys()


def test_an_unknown_norm_is_refused_by_name():
    with pytest.raises(NormError, match="unknown norm 'gruop'; did you mean 'group'"):
        convert_norms(conv_net(), "gruop")


def test_a_model_that_is_itself_a_norm_is_refused():
    with pytest.raises(NormError, match=r"the model is itself a norm \(BatchNorm2d\)"):
        convert_norms(nn.BatchNorm2d(4), "group")


def test_a_model_without_norms_gives_an_empty_report():
    report = convert_norms(nn.Linear(2, 2), "group")
    assert (report.rows, str(report)) == ((), "0 norms: 0 replaced, 0 left")


def test_a_callable_builds_the_norm():
    net = conv_net()
    convert_norms(net, lambda channels, dim: nn.GroupNorm(2, channels))
    assert net[1].num_groups == 2


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_to_itself_is_bit_exact(training):
    net, x = trained(conv_net()).train(training), torch.randn(4, 3, 9, 9)
    twin = copy.deepcopy(net)
    assert len(convert_norms(twin, "batch").replaced) == 2
    assert torch.equal(twin(x), net(x))
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), net.state_dict().values(), strict=True))
    assert twin.state_dict().keys() == net.state_dict().keys()


def test_batch_norm_to_its_frozen_form_is_exact_in_evaluation():
    net, x = trained(conv_net()), torch.randn(4, 3, 9, 9)
    twin = copy.deepcopy(net)
    convert_norms(twin, "batch_frozen")
    assert torch.equal(twin(x), net(x))
    assert [name for name, _ in twin.named_parameters()] == ["0.weight", "3.weight", "3.bias"]


def test_there_and_back_is_exact():
    net, x = trained(conv_net()), torch.randn(4, 3, 9, 9)
    twin = copy.deepcopy(net)
    for to in ("batch_frozen", "batch"):
        convert_norms(twin, to)
    assert torch.equal(twin(x), net(x))
    assert all(p.requires_grad for p in twin.parameters())


@pytest.mark.parametrize(
    ("old", "to"),
    [
        (nn.LayerNorm(16, eps=1e-3), "layer"),
        (nn.LayerNorm(16), "layer_c"),
        (nn.RMSNorm(16), "rms"),
        (nn.GroupNorm(2, 16), "group"),
    ],
)
def test_what_is_the_norm_already_is_left_and_says_so(old, to):
    net = nn.Sequential(nn.Linear(16, 16), old)
    report = convert_norms(net, to)
    assert net[1] is old
    assert report.kept[0].note == "it is this norm already"


def test_another_option_makes_it_another_norm():
    net = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))
    assert len(convert_norms(net, {"name": "layer", "eps": 1e-3}).replaced) == 1
    assert net[1].eps == 1e-3


@pytest.mark.parametrize("name", list_norms())
def test_every_norm_takes_the_place_of_batch_norm_and_gives_it_back(name):
    entry = norm_entry(name)
    net, x = trained(conv_net()).train(), torch.randn(4, 3, 9, 9)
    if 2 not in entry.dims:
        with pytest.raises(NormError, match="not defined for dim 2"):
            convert_norms(net, name)
        return
    report = convert_norms(net, name)
    assert len(report.replaced) == 2
    ids = torch.tensor([0, 1, 1, 0])
    with norm_context(domain=ids, label=ids, style=torch.randn(4, 16, 5, 5), reference=2):
        assert net(x).isfinite().all()
    if name != "none" and not entry.acts_on_weight:
        assert len(convert_norms(net, "batch", where="*").replaced) == 2
        assert net(x).isfinite().all()


def test_norms_of_tokens_take_inputs_of_any_rank():
    """q and k norms see (B, H, L, D), channels-last images (B, H, W, C), pooled features (B, C)."""
    for name in ("batch", "group", "rms", "dyt", "instance"):
        net = nn.Sequential(nn.LayerNorm(8))
        convert_norms(net, name)
        tokens = torch.randn(2, 12, 8)
        expected = net(tokens)
        assert torch.allclose(net(tokens.unflatten(1, (3, 4))).flatten(1, 2), expected, atol=1e-6), name


def test_a_norm_of_features_is_that_of_tokens_with_one_each():
    net = nn.Sequential(nn.LayerNorm(8))
    convert_norms(net, "batch")
    x = torch.randn(6, 8)
    assert torch.allclose(net(x), make_norm("batch", 8, 0)(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 5), (4, 8, 3, 2), (4, 8, 2, 3, 2)])
@pytest.mark.parametrize("name", ["batch", "rms", "dyt", "layer_chw"])
def test_a_group_norm_of_unknown_rank_becomes_a_norm_of_every_rank(name, shape):
    net, x = nn.Sequential(nn.GroupNorm(2, 8)), torch.randn(shape)
    convert_norms(net, name)
    alone = make_norm({"name": "rms", "eps": 1e-5} if name == "rms" else name, 8, len(shape) - 2)
    assert torch.allclose(net(x), alone(x), atol=1e-6)


def test_an_example_tells_the_rank_so_that_nothing_is_put_around_the_norm():
    net = nn.Sequential(nn.Conv1d(3, 8, 3), nn.GroupNorm(2, 8))
    report = convert_norms(net, "batch", example=torch.randn(2, 3, 9))
    assert isinstance(net[1], nn.BatchNorm1d)
    assert report.rows[0].layout == "(B, C, S)"


def test_an_example_decides_where_a_name_has_no_meaning_for_images():
    def mlp():
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))

    with pytest.raises(NormError, match="pass `example`, an input of the model, to have the rank measured"):
        convert_norms(mlp(), "layer")
    net = mlp()
    convert_norms(net, "layer", example=torch.randn(2, 3))
    assert net(torch.randn(2, 3)).mean(1).abs().max() < 1e-6


def test_an_example_that_does_not_run_is_refused():
    with pytest.raises(NormError, match=r"the model does not run on the example .*RuntimeError"):
        convert_norms(conv_net(), "group", example=torch.randn(2, 5, 9, 9))


def test_an_example_leaves_modes_buffers_hooks_and_random_numbers_alone():
    net = conv_net().train()
    net[2].eval()
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    convert_norms(net, "batch", example=(torch.zeros(2, 3, 9, 9),))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [layer.training for layer in net] == [True, True, False, True, True]
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net)


def test_a_shared_norm_stays_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.BatchNorm2d(8)
            self.inner = nn.Sequential(self.first)

    net = Twice()
    report = convert_norms(net, "group")
    assert net.first is net.second is net.inner[0]
    assert [row.name for row in report.rows] == ["first = second = inner.0"]


def test_a_layer_norm_over_several_axes_is_left_with_the_reason():
    net = nn.Sequential(nn.LayerNorm([3, 4, 4]), nn.BatchNorm2d(3))
    report = convert_norms(net, "instance")
    assert [row.name for row in report.kept] == ["0"]
    assert "the last 3 axes (3, 4, 4)" in report.kept[0].note
    assert "LayerNorm left: it normalises" in str(report)


def test_response_norms_are_left_unless_named():
    net = nn.Sequential(nn.Linear(4, 4), make_norm("global_response", 4, 2))
    assert "does not normalise" in convert_norms(net, "batch").kept[0].note
    assert len(convert_norms(net, "batch", where="1").replaced) == 1


def test_local_response_norm_learns_its_channels_from_an_example():
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(2)), torch.randn(2, 3, 5, 5)
    with pytest.raises(NormError, match="does not know its number of channels; pass `example`"):
        convert_norms(net, "batch")
    convert_norms(net, "batch", example=x)
    assert net[1].num_features == 8


def test_a_lost_shift_is_given_to_the_layer_before():
    net = conv_net()
    report = convert_norms(net, "rms")
    assert torch.equal(net[0].bias, torch.zeros(16))
    assert [row.note for row in report.rows] == [
        "it gives no shift, so '0' got a bias of zeros",
        "its shift is left to the bias of '3'",
    ]


def test_a_lost_shift_without_a_layer_before_is_told():
    report = convert_norms(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "none")
    assert "its shift is lost" in report.rows[0].note


def test_norms_on_weights_are_attached_to_the_layer_before():
    net = conv_net()
    convert_norms(net, "weight_standardization")
    assert net[0].weight.mean((1, 2, 3)).abs().max() < 1e-6
    assert net(torch.randn(2, 3, 9, 9)).isfinite().all()


def test_a_norm_without_a_shift_loses_none():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False))
    for to in ("rms", "weight_norm"):
        assert convert_norms(net, to).rows[0].note == ""
    assert net[0].bias is None


def test_norms_on_weights_need_a_layer_before():
    net = nn.Sequential(conv_net(), nn.ReLU(), nn.BatchNorm2d(16))
    with pytest.raises(NormError, match=r"1 of 3 norms, and nothing was changed\. 2: .*no layer directly before"):
        convert_norms(net, "weight_norm")
    assert type(net[0][0].weight) is nn.Parameter


def test_function_calls_that_no_module_owns_are_listed():
    class ByHand(nn.Module):
        def forward(self, x):
            x = F.layer_norm(x, x.shape[-1:])
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), ByHand())
    report = convert_norms(net, "rms", example={"input": torch.randn(2, 4)})
    assert report.not_reached == ("layer_norm in 2 (ByHand)", "rsqrt in 2 (ByHand)")
    assert "not reached: layer_norm in 2 (ByHand)" in str(report)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_torchs_fused_encoder_layer_does_not_bypass_the_new_norm():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    report = convert_norms(net, "none")
    assert report.notes == ("torch's fused kernel was turned off in 2 nn.TransformerEncoderLayer",)
    with torch.no_grad():
        fast, slow = net(x, src_key_padding_mask=padding), net.train()(x, src_key_padding_mask=padding)
    assert torch.equal(fast, slow)


def test_our_own_nets_are_converted():
    net, x = trained(UNet(1, 2, width=8, depth=2, normalize_streams="both")), torch.randn(1, 1, 16, 16)
    twin = copy.deepcopy(net)
    convert_norms(twin, "batch_frozen")
    assert torch.allclose(twin(x), net(x), rtol=0, atol=1e-6)
    assert len(convert_norms(twin, {"name": "group", "num_groups": 2}).replaced) == 14
    assert twin.train()(x).isfinite().all()
