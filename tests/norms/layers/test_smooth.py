"""What `make_norm(..., smooth=True)` keeps, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ics_apps.norms import NormError, make_norm
from ics_apps.norms.layers.smooth import SmoothLayerNorm


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 0.7


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_spectral_norm_is_refused_with_a_sentence():
    with pytest.raises(
        NormError, match="norm 'spectral_norm' has no route with right higher derivatives; choose another norm"
    ):
        make_norm("spectral_norm", 4, smooth=True)


@pytest.mark.parametrize("p", ["l1", "linf"])
def test_a_kink_is_refused_whichever_option_makes_it(p):
    with pytest.raises(NormError, match="norm 'lp_batch' has kinks, so its higher derivatives do not exist"):
        make_norm({"name": "lp_batch", "p": p}, 4, smooth=True)


def test_batch_norm_keeps_its_class_state_and_options():
    options = {"small_batch": "running", "min_count": 20, "eps": 1e-3, "momentum": 0.3}
    norm, plain = (make_norm({"name": "batch", **options}, 4, smooth=s).double() for s in (True, False))
    assert isinstance(norm, nn.BatchNorm2d)
    assert list(norm.state_dict()) == list(plain.state_dict())
    for x in (draw(3, 4, 3, 3), draw(2, 4, 3, 3)):  # 27 values a channel, then 18: too few
        same(norm(x), plain(x))
        same(norm.running_mean, plain.running_mean)
    assert norm.num_batches_tracked == 1


def test_a_small_batch_is_refused_as_ever():
    with pytest.raises(ValueError, match="batch norm needs more than 1 value per channel in training, got 1"):
        make_norm("batch", 4, 0, smooth=True)(torch.ones(1, 4))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ["batch", "sync_batch"])
def test_running_statistics_are_those_of_the_fused_kernel(name, momentum):
    norm, plain = (make_norm({"name": name, "momentum": momentum}, 4, smooth=s).double() for s in (True, False))
    for scale in (1, 3):
        norm(scale * draw(3, 4, 3, 2))
        plain(scale * draw(3, 4, 3, 2))
    same(norm.running_mean, plain.running_mean)
    same(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize(
    ("name", "dim", "shape"),
    [("batch", 2, (3, 4, 3, 2)), ("ghost_batch", 2, (3, 4, 3, 2)), ("layer", "tokens", (3, 5, 4))],
)
def test_checkpointing_changes_neither_gradients_nor_running_statistics(name, dim, shape):
    results = []
    for recompute in (True, False):
        norm, x = make_norm(name, 4, dim, smooth=True).double(), draw(*shape).requires_grad_()
        y = checkpoint(norm, x, use_reentrant=False) if recompute else norm(x)
        y.sin().sum().backward()
        results.append([y, x.grad, norm.weight.grad, *norm.buffers()])
    for a, b in zip(*results, strict=True):
        same(a, b)


@pytest.mark.parametrize(("name", "dim", "shape"), [("layer", 0, (3, 4)), ("layer", "tokens", (3, 5, 4))])
def test_layer_norm_shares_its_parameters_by_their_names(name, dim, shape):
    norm, plain = make_norm(name, 4, dim, smooth=True).double(), make_norm(name, 4, dim).double()
    assert isinstance(norm, SmoothLayerNorm)
    plain.load_state_dict({"weight": torch.rand(4), "bias": torch.rand(4)})
    norm.load_state_dict(plain.state_dict())
    same(norm(draw(*shape)), plain(draw(*shape)))


def test_a_norm_that_is_right_already_stays_as_it_is():
    assert type(make_norm("ghost_batch", 4, smooth=True)) is type(make_norm("ghost_batch", 4))


def test_a_layer_of_ones_own_is_the_callers_matter():
    norm = make_norm(lambda channels, *, dim: nn.LayerNorm(channels), 4, "tokens", smooth=True)
    assert type(norm) is nn.LayerNorm
