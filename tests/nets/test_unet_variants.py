"""Residual, gated, deeply supervised and anisotropic U-Nets, with every norm."""

from __future__ import annotations

import itertools

import pytest
import torch

from ics_apps.nets import UNet
from ics_apps.nets.unet import SITES
from ics_apps.norms import NormError, list_norms, norm_context, norm_entry

SIZES = {1: (8,), 2: (8, 12), 3: (4, 4, 8)}
ORDERS = ("conv-norm-act", "conv-act-norm")
# A style has the channels of one layer, so it comes by the call and not by a context around a whole net.
NORMS = [name for name in list_norms() if name != "adaptive_instance"]


def small(dim=2, **options):
    torch.manual_seed(0)
    return UNet(2, 2, dim, **({"width": 8, "depth": 2} | options))


def image(dim=2, batch=2):
    return torch.randn(batch, 2, *SIZES[dim], generator=torch.Generator().manual_seed(0))


def trains_a_step_or_says_why_not(norm, dim, site, order, block):
    """Every place of the net has the norm (site None), or one site among batch norms."""
    streams = "up" if site is None and norm_entry(norm).acts_on_weight else "both"
    chosen = {"norm": norm} if site is None else {"norm": "batch", "site_norms": {site: norm}}
    options = {"normalize_streams": streams, "attention": "gate", "order": order, "block": block, **chosen}
    site = site or "encoder"
    if dim not in norm_entry(norm).dims:
        with pytest.raises(NormError, match=f"{site}.*norm '{norm}' is not defined for dim {dim}") as caught:
            small(dim, **options)
        assert "\n" not in str(caught.value)
        return
    if site == "skip" and norm_entry(norm).acts_on_weight:
        with pytest.raises(NormError, match=r"stream 'skip'.*there is none here"):
            small(dim, **options)
        return
    net = small(dim, **options)
    labels = torch.tensor([0, 1])
    with norm_context(domain=torch.zeros(2, dtype=torch.int64), label=labels, reference=1):
        y = net(image(dim))
    y.square().mean().backward()
    assert y.shape == (2, 2, *SIZES[dim])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dim", [2, 3])
def test_every_norm_trains_a_residual_gated_net_or_says_why_not(norm, order, dim):
    trains_a_step_or_says_why_not(norm, dim, None, order, "residual")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("site", ["shortcut", "gate"])
def test_every_norm_fits_the_sites_of_shortcut_and_gate(norm, site):
    trains_a_step_or_says_why_not(norm, 2, site, ORDERS[0], "residual")


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("dim", "site", "order", "block"), list(itertools.product([1, 2, 3], SITES, ORDERS, ["plain", "residual"]))
)
def test_every_norm_at_every_site_in_every_order_and_block(norm, dim, site, order, block):
    if site != "shortcut" or block == "residual":
        trains_a_step_or_says_why_not(norm, dim, site, order, block)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"site_norms": {"gate": "none"}},
            "norm for 'gate', which attention='none' leaves out; set attention to 'gate'",
        ),
        ({"site_norms": {"shortcut": "none"}}, "'shortcut', which block='plain' leaves out; set block to 'residual'"),
        ({"attention": "soft"}, "attention must be one of 'none', 'gate', got 'soft'"),
        ({"block": "dense"}, "block must be one of 'plain', 'residual', got 'dense'"),
        ({"deep_supervision": 2}, "deep_supervision must be one of 0, 1, got 2"),
        ({"strides": [[2, 2]]}, r"strides must have 2 numbers for each of 2 poolings \(depth\), got \[\[2, 2\]\]"),
        ({"strides": [[2, 2], [2, 0]]}, r"strides\[1\] must be a positive integer, got 0"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("fold", [1, 2])
def test_deep_supervision_gives_logits_at_each_scale_in_training_only(fold):
    net = small(depth=3, deep_supervision=2, fold=fold)
    x = torch.randn(2, 2, 18, 21)
    assert [tuple(y.shape) for y in net(x)] == [(2, 2, 18, 21), (2, 2, 9, 11), (2, 2, 5, 6)]
    assert net.eval()(x).shape == (2, 2, 18, 21)


def test_the_finest_logits_are_those_of_the_net_without_deep_supervision():
    deep, plain = small(deep_supervision=1), small()
    plain.load_state_dict({name: value for name, value in deep.state_dict().items() if "coarse_heads" not in name})
    assert torch.equal(deep(image())[0], plain(image()))


def test_all_heads_reach_all_parameters():
    net = small(deep_supervision=1)
    sum(y.square().mean() for y in net(image())).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_strides_spare_a_coarse_axis():
    net = small(3, strides=[[1, 2, 2], [2, 2, 2]])
    maps = []
    net.bottleneck.register_forward_hook(lambda _m, inputs, _o: maps.append(tuple(inputs[0].shape[2:])))
    assert net(torch.zeros(1, 2, 6, 16, 16)).shape == (1, 2, 6, 16, 16)
    assert maps == [(3, 4, 4)]
    assert net.stride == 4


@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
def test_strides_with_any_size_and_deep_supervision(upsample):
    net = small(3, strides=[[1, 2, 2], [1, 2, 2]], deep_supervision=1, upsample=upsample)
    assert [tuple(y.shape[2:]) for y in net(torch.zeros(2, 2, 3, 7, 9))] == [(3, 7, 9), (3, 4, 5)]


def test_strides_of_two_everywhere_are_the_default():
    net = small(strides=[[2, 2], [2, 2]])
    net.load_state_dict(small().state_dict())
    assert torch.equal(net(image()), small()(image()))


def test_a_shortcut_of_a_single_channel_cannot_have_standardised_weights():
    with pytest.raises(NormError, match=r"^shortcut of encoder level 0: .*at least two weights.*use 'weight_norm'"):
        UNet(1, 2, norm="weight_standardization", block="residual")
