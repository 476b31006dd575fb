"""Parameters before and after a step, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ics_apps.norms import make_norm
from ics_apps.norms.convert.adapters import RankAdapter
from ics_apps.norms.layers.batch import FrozenBatchNorm
from ics_apps.probes.activations.weights import FIGURES, WeightWatch
from ics_apps.probes.selection import Kind, Layer


def watch(*layers: tuple[Kind, nn.Module], size: int = 512) -> WeightWatch:
    return WeightWatch([Layer((str(n),), kind, module) for n, (kind, module) in enumerate(layers)], size)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_update_of_sgd_is_lr_times_gradient_over_weight() -> None:
    layer = nn.Linear(20, 10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    watched = watch(("linear", layer))
    layer(torch.randn(5, 20, generator=generator())).square().mean().backward()
    norm, gradient = float(layer.weight.detach().norm()), float(layer.weight.grad.norm())
    watched.before()
    optimizer.step()
    figures = watched.after()
    assert figures["weight_norm"][0] == pytest.approx(norm, rel=1e-6)
    assert figures["update_ratio"][0] == pytest.approx(0.3 * gradient / norm, rel=1e-5)


def test_the_effective_learning_rate_is_told_of_scale_invariant_weights_only() -> None:
    layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
    lr = {id(layers[0].weight): 0.1, id(layers[1].weight): 0.2}
    watched = watch(*(("linear", layer) for layer in layers))
    watched.before()
    figures = watched.after(lr, {1})
    assert math.isnan(figures["effective_lr"][0])
    assert figures["effective_lr"][1] == pytest.approx(0.2 / float(layers[1].weight.detach().square().sum()), rel=1e-6)
    watched.before()
    assert math.isnan(watched.after({}, {1})["effective_lr"][1])


def test_norms_tell_the_moments_of_their_gamma_and_beta_and_others_do_not() -> None:
    norm, linear = nn.BatchNorm2d(4), nn.Linear(4, 4)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    norm.bias.data = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    watched = watch(("linear", linear), ("norm", norm))
    watched.before()
    figures = watched.after()
    found = [float(figures[name][1]) for name in ("gamma_mean", "gamma_std", "beta_mean", "beta_std")]
    assert found == pytest.approx([2.5, math.sqrt(1.25), 0.0, 1.0])
    assert all(math.isnan(figures[name][0]) for name in ("gamma_mean", "gamma_std", "beta_mean", "beta_std"))


def test_the_norm_of_a_large_weight_is_estimated_within_its_error() -> None:
    layer = nn.Conv2d(64, 64, 3)
    nn.init.normal_(layer.weight, generator=generator())
    watched = watch(("conv", layer))
    watched.before()
    layer.weight.data.mul_(1.01)
    figures = watched.after()
    true = float(layer.weight.detach().norm()) / 1.01
    assert figures["weight_norm"][0] != pytest.approx(true, rel=1e-6)
    assert figures["weight_norm"][0] == pytest.approx(true, rel=4 / math.sqrt(2 * 512))
    # A step along the weight is seen exactly wherever it is read.
    assert figures["update_ratio"][0] == pytest.approx(0.01, rel=1e-4)


def test_frozen_weights_do_not_move_even_where_they_are_zero() -> None:
    zero = nn.Linear(3, 3)
    nn.init.zeros_(zero.weight)
    watched = watch(("linear", nn.Linear(3, 3)), ("linear", zero), ("norm", FrozenBatchNorm(4, 2, 1e-5)))
    watched.before()
    assert watched.after()["update_ratio"].tolist() == [0.0, 0.0, 0.0]


def test_a_weight_that_leaves_zero_has_no_ratio() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    watched = watch(("linear", layer))
    watched.before()
    nn.init.ones_(layer.weight)
    figures = watched.after()
    assert (figures["weight_norm"][0], math.isnan(figures["update_ratio"][0])) == (0.0, True)


class NoWeight(nn.Module):
    pass


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("linear", nn.LazyLinear(3)),
        ("linear", nn.Linear(3, 3, device="meta")),
        ("norm", nn.BatchNorm2d(3, affine=False)),
        ("activation", nn.ReLU()),
        ("linear", parametrizations.weight_norm(nn.Linear(3, 3))),
        ("stream", NoWeight()),
    ],
)
def test_what_cannot_be_read_has_no_figures_and_disturbs_no_other(kind: Kind, module: nn.Module) -> None:
    other = nn.Linear(3, 3)
    watched = watch((kind, module), ("linear", other))
    watched.before()
    other.weight.data.mul_(2)
    figures = watched.after({}, {0})
    assert all(math.isnan(figures[name][0]) for name in FIGURES)
    assert figures["update_ratio"][1] == pytest.approx(1.0)


def test_nothing_to_read_at_all_gives_only_unknowns() -> None:
    watched = watch(("activation", nn.ReLU()))
    watched.before()
    assert math.isnan(watched.after()["weight_norm"][0])
    assert watch().after()["weight_norm"].shape == (0,)


def test_asking_after_without_before_gives_only_unknowns() -> None:
    watched = watch(("linear", nn.Linear(3, 3)))
    assert math.isnan(watched.after()["weight_norm"][0])
    watched.before()
    assert not math.isnan(watched.after()["weight_norm"][0])
    assert math.isnan(watched.after()["weight_norm"][0])


def replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def reshape(layer: nn.Linear) -> None:
    layer.weight.data = torch.ones(5, 7)


def remove(layer: nn.Linear) -> None:
    del layer.weight


@pytest.mark.parametrize("change", [replace, reshape, remove])
def test_a_parameter_that_was_replaced_has_a_norm_but_no_update(change) -> None:
    changed, other = nn.Linear(3, 3), nn.Linear(3, 3)
    watched = watch(("linear", changed), ("linear", other))
    watched.before()
    change(changed)
    other.weight.data.mul_(2)
    figures = watched.after()
    assert not math.isnan(figures["weight_norm"][0])
    assert math.isnan(figures["update_ratio"][0])
    assert figures["update_ratio"][1] == pytest.approx(1.0)


def test_a_parameter_replaced_between_two_samples_is_read_anew() -> None:
    layer = nn.Linear(3, 3)
    watched = watch(("linear", layer))
    watched.before()
    watched.after()
    layer.weight = nn.Parameter(torch.ones(4, 4))
    watched.before()
    assert watched.after()["weight_norm"][0] == pytest.approx(4.0)


def test_storage_that_an_optimizer_swaps_is_followed() -> None:
    layer = nn.Linear(3, 3)
    watched = watch(("linear", layer))
    watched.before()
    layer.weight.data = layer.weight.data * 1.5
    assert watched.after()["update_ratio"][0] == pytest.approx(0.5)


def test_a_lazy_layer_is_read_once_it_has_a_weight() -> None:
    layer = nn.LazyLinear(3)
    watched = watch(("linear", layer))
    watched.before()
    layer(torch.ones(1, 2))
    assert math.isnan(watched.after()["weight_norm"][0])
    watched.before()
    assert watched.after()["weight_norm"][0] == pytest.approx(float(layer.weight.detach().norm()))


def test_a_tied_weight_is_told_of_both_layers() -> None:
    embedding, head = nn.Linear(3, 4), nn.Linear(3, 4)
    head.weight = embedding.weight
    watched = watch(("linear", embedding), ("linear", head))
    watched.before()
    head.weight.data.mul_(3)
    figures = watched.after({id(head.weight): 0.1}, {0, 1})
    assert figures["update_ratio"] == pytest.approx([2.0, 2.0])
    assert figures["effective_lr"][0] == figures["effective_lr"][1] > 0


def test_spectral_norm_takes_no_step_when_its_weight_is_read() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(6, 5))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    watched = watch(("linear", layer))
    watched.before()
    figures = watched.after()
    original = layer.parametrizations.weight.original
    assert figures["weight_norm"][0] == pytest.approx(float(original.detach().norm()), rel=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("norm", [make_norm("batch_noisy", 4), RankAdapter(make_norm("layer_chw", 4, 1), 1)])
def test_the_parameters_of_a_wrapped_norm_are_found(norm: nn.Module) -> None:
    watched = watch(("norm", norm))
    watched.before()
    figures = watched.after()
    assert (figures["gamma_mean"][0], figures["beta_mean"][0]) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_and_layout_are_read(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(3, 4, 3).to(dtype).to(memory_format=torch.channels_last)
    expanded = nn.Linear(3, 3)
    expanded.weight = nn.Parameter(torch.ones(3, 1).expand(3, 3))
    watched = watch(("conv", layer), ("linear", expanded))
    watched.before()
    figures = watched.after()
    assert figures["weight_norm"] == pytest.approx([float(layer.weight.detach().double().norm()), 3.0], rel=1e-6)


def test_a_first_step_under_inference_mode_does_not_spoil_later_ones() -> None:
    layer = nn.Linear(3, 3)
    watched = watch(("linear", layer))
    with torch.inference_mode():
        watched.before()
        watched.after()
    watched.before()
    assert watched.after()["update_ratio"][0] == 0.0


def test_nothing_is_written_to_and_the_memory_stays_bounded() -> None:
    layers = [nn.Linear(100, 100) for _ in range(8)]
    watched = watch(*(("linear", layer) for layer in layers), size=64)
    before = [layer.weight.detach().clone() for layer in layers]
    for _ in range(3):
        watched.before()
        watched.after()
    assert sum(bank.memory.numel() for bank in watched._banks) <= 2 * 64 * 8
    assert all(torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True))
