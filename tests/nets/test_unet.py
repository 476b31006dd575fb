"""Shapes, sites, streams and parameters of the U-Net."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from ics_apps.nets import UNet
from ics_apps.norms import NormError, list_norms, norm_context, norm_entry

SIZES = {1: (16,), 2: (16, 24), 3: (8, 8, 16)}
SITES = ("encoder", "bottleneck", "decoder", "skip", "up")
# A style has the channels of one layer, so it comes by the call and not by a context around a whole net.
FOR_NETS = [name for name in list_norms() if name != "adaptive_instance"]


def conditions():
    """What the conditional norms among them need, for a batch of two."""
    return norm_context(domain=torch.zeros(2, dtype=torch.int64), label=torch.tensor([0, 1]), reference=1)


def small(dim=2, **options):
    torch.manual_seed(0)
    return UNet(1, 2, dim, **({"width": 8, "depth": 2} | options))


def image(dim=2, batch=2):
    return torch.randn(batch, 1, *SIZES[dim], generator=torch.Generator().manual_seed(0))


def places(net, kind):
    return [name for name, module in net.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
def test_logits_have_the_classes_and_the_size_of_the_input(dim, upsample):
    assert small(dim, upsample=upsample)(image(dim)).shape == (2, 2, *SIZES[dim])


@pytest.mark.parametrize("size", [(17, 20), (1, 3), (15, 33), (13, 13)])
def test_any_size_works(size):
    assert small().eval()(torch.zeros(1, 1, *size)).shape == (1, 2, *size)


def test_an_odd_size_gives_what_its_repeated_border_would():
    net = small().eval()
    x = torch.randn(1, 1, 14, 16)
    padded = torch.cat([x, x[:, :, -1:], x[:, :, -1:]], 2)
    assert torch.equal(net(x), net(padded)[:, :, :14])


def test_levels_double_their_width_up_to_the_bound():
    net = UNet(3, 5, width=8, depth=4, max_width=32)
    assert [level.conv1.out_channels for level in net.encoder] == [8, 16, 32, 32]
    assert net.bottleneck.conv1.out_channels == 32
    assert [level.convs.conv1.in_channels for level in net.decoder] == [16, 32, 64, 64]
    assert (net.stride, net.head.out_channels) == (16, 5)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_number_of_parameters_follows_from_the_widths(dim):
    in_channels, classes, widths = 3, 5, [8, 16, 32]
    tap, pair = 3**dim, 0
    for a, b in zip([in_channels, *widths], widths, strict=False):
        pair += tap * (a * b + b * b) + 2 * 2 * b
    for a, b in itertools.pairwise(reversed(widths)):
        pair += 2**dim * a * b + b + tap * (2 * b * b + b * b) + 2 * 2 * b
    expected = pair + widths[0] * classes + classes
    net = UNet(in_channels, classes, dim, width=8, depth=2)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_the_plain_16_wide_net_has_1_94_million_parameters():
    # The size of the plain batch-norm U-Net that the benchmarks take as their anchor.
    assert sum(p.numel() for p in UNet(1, 2).parameters()) == pytest.approx(1.94e6, rel=0.005)


def test_module_names_are_readable():
    names = dict(small(normalize_streams="both").named_modules())
    for name in (
        "encoder.0.conv1",
        "encoder.1.norm2",
        "bottleneck.act1",
        "decoder.0.up",
        "decoder.1.convs.conv2",
        "head",
    ):
        assert name in names
    assert {"decoder.0.concat.skip", "decoder.0.concat.up"} <= set(names)


def test_each_site_takes_its_own_norm():
    site_norms = {
        "encoder": "batch",
        "bottleneck": "layer_c",
        "decoder": {"name": "group", "num_groups": 4},
        "skip": "instance",
        "up": "rms",
    }
    net = small(norm="none", site_norms=site_norms, normalize_streams="both")
    kinds = {
        name: type(module).__name__ for name, module in net.named_modules() if "norm" in name or ".concat." in name
    }
    for name, kind in kinds.items():
        site = name.split(".")[-1] if ".concat." in name else name.split(".")[0]
        expected = {
            "encoder": "BatchNorm2d",
            "bottleneck": "LayerNorm",
            "decoder": "GroupNorm",
            "skip": "InstanceNorm",
            "up": "RMSNorm",
        }
        assert kind == expected[site], name
    assert len(kinds) == 2 * (2 + 1 + 2) + 2 * 2


@pytest.mark.parametrize(
    ("streams", "normed"), [("none", []), ("skip", ["skip"]), ("up", ["up"]), ("both", ["skip", "up"])]
)
def test_normalize_streams_normalises_these_streams_at_every_level(streams, normed):
    net = small(norm="instance", normalize_streams=streams)
    for level in net.decoder:
        found = [name for name, module in level.concat.named_children() if not isinstance(module, nn.Identity)]
        assert found == normed


def test_normalised_streams_meet_with_equal_loudness():
    net = small(norm="instance", normalize_streams="both")
    sizes = {}
    for stream in ("skip", "up"):
        module = net.decoder[0].concat.get_submodule(stream)
        module.register_forward_hook(lambda _m, _i, y, stream=stream: sizes.update({stream: y.square().mean().sqrt()}))
    net(image())
    assert sizes["skip"].item() == pytest.approx(1, rel=1e-2)
    assert sizes["up"].item() == pytest.approx(1, rel=1e-2)


def test_order_puts_the_norm_before_or_behind_the_activation():
    for order, expected in (
        ("conv-norm-act", ["conv1", "norm1", "act1"]),
        ("conv-act-norm", ["conv1", "act1", "norm1"]),
    ):
        ran = []
        pair = small(order=order).encoder[0]
        for name, module in pair.named_children():
            module.register_forward_hook(lambda _m, _i, _o, name=name, ran=ran: ran.append(name))
        pair(image())
        assert ran[:3] == expected


def test_the_first_convolution_has_a_bias_only_where_it_does_something():
    def has_bias(**options):
        return small(**options).encoder[0].conv1.bias is not None

    assert not has_bias(norm="batch")
    assert has_bias(norm="batch", order="conv-act-norm")
    assert has_bias(norm="rms")
    assert has_bias(norm="none")


def test_the_up_convolution_has_a_bias_unless_its_stream_is_normalised():
    assert small(norm="batch").decoder[0].up[0].bias is not None
    assert small(norm="batch", normalize_streams="up").decoder[0].up[0].bias is None
    assert small(norm="batch", normalize_streams="up", upsample="nearest").decoder[0].up[0].bias is None


def test_filter_response_stands_for_the_activation_too():
    assert places(small(norm="filter_response"), nn.ReLU) == []
    assert len(places(small(norm="batch"), nn.ReLU)) == 10


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("gelu", nn.GELU), ("silu", nn.SiLU)]
)
def test_activation_is_the_one_asked_for(activation, kind):
    assert len(places(small(activation=activation), kind)) == 10


@pytest.mark.parametrize("norm", [name for name in FOR_NETS if 2 in norm_entry(name).dims])
@pytest.mark.parametrize("order", ["conv-norm-act", "conv-act-norm"])
def test_every_norm_trains_and_reaches_all_parameters(norm, order):
    streams = "up" if norm_entry(norm).acts_on_weight else "both"
    net = small(norm=norm, order=order, normalize_streams=streams)
    before = [parameter.clone() for parameter in net.parameters()]
    # With standardised weights and nothing else activations grow by sqrt(fan_in) a layer, and gradients with them.
    rate = 1e-12 if norm == "weight_standardization" else 0.1
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    with conditions():
        net(image()).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with conditions():
        assert net.eval()(image()).isfinite().all()


@pytest.mark.parametrize("norm", FOR_NETS)
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("site", SITES)
def test_every_norm_fits_every_site_or_says_in_a_line_why_not(norm, dim, site):
    options = {"norm": "batch", "site_norms": {site: norm}, "normalize_streams": "both"}
    if site == "skip" and norm_entry(norm).acts_on_weight:
        with pytest.raises(NormError, match=r"stream 'skip'.*there is none here"):
            small(dim, **options)
    elif dim in norm_entry(norm).dims:
        with conditions():
            assert small(dim, **options)(image(dim)).shape == (2, 2, *SIZES[dim])
    else:
        with pytest.raises(NormError, match=f"{site}.*norm '{norm}' is not defined for dim {dim}") as caught:
            small(dim, **options)
        assert "\n" not in str(caught.value)


def test_the_same_function_in_channels_last():
    net, x = small().double(), image().double()
    expected = net(x)
    y = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_it_compiles_to_one_graph_of_equal_value():
    net, x = small(norm="instance", normalize_streams="both"), image()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=1e-5)


def test_checkpointed_activations_give_the_same_gradients():
    net, x = small(norm="group").double(), image().double()
    gradients = []
    for checkpointed in (False, True):
        net.zero_grad()
        y = checkpoint(net, x, use_reentrant=False) if checkpointed else net(x)
        y.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_state_holds_plain_tensors_that_load_into_a_new_net(tmp_path):
    net = small(norm="batch", normalize_streams="both")
    net(image())
    torch.save(net.state_dict(), tmp_path / "net.pt")
    fresh = small(norm="batch", normalize_streams="both")
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(fresh.eval()(image()), net.eval()(image()))


def test_training_lowers_the_loss():
    net, x = small(), image(batch=4)
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site_norms": {"encodr": "none"}}, r"unknown site 'encodr' in site_norms; did you mean 'encoder'\?"),
        ({"site_norms": {"skip": "instance"}}, "norm for 'skip', which normalize_streams='none' leaves as it is; set"),
        ({"norm": "batsh"}, "encoder level 0: unknown norm 'batsh'; did you mean 'batch'"),
        ({"norm": "group", "width": 6}, "encoder level 0: 6 channels cannot be split into 8 equal groups"),
        ({"norm": "layer"}, "'layer' is not defined for dim 2: .*'layer_chw'.*'layer_c'"),
        ({"normalize_streams": "all"}, "normalize_streams must be one of 'none', 'skip', 'up', 'both', got 'all'"),
        ({"order": "norm-conv"}, "order must be one of 'conv-norm-act', 'conv-act-norm', got 'norm-conv'"),
        ({"activation": "tanh"}, "activation must be one of 'relu', .*, got 'tanh'"),
        ({"upsample": "linear"}, "upsample must be one of 'transpose', 'nearest', got 'linear'"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"dim": 4}, "dim must be one of 1, 2, 3, got 4"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("norm", list_norms(family="weight"))
@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
def test_norms_on_weights_reach_every_convolution_of_their_site(norm, upsample):
    options = {"norm": norm, "upsample": upsample, "normalize_streams": "up"}
    net, fresh = small(**options), small(**options)
    plain = [m for m in net.modules() if isinstance(m, _ConvNd) and not parametrize.is_parametrized(m)]
    assert plain == [net.head]
    net(image()).square().mean().backward()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(image()), net.eval()(image()))


@pytest.mark.parametrize("norm", list_norms(family="weight"))
def test_a_skip_stream_refuses_norms_on_weights(norm):
    with pytest.raises(NormError, match=rf"decoder level 0, stream 'skip': norm '{norm}'.*there is none here"):
        small(norm=norm, normalize_streams="both")
