"""Which modules let samples see each other, by gradients: known answers, planted mistakes, and what is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ics_apps.norms import list_norms, make_norm, norm_entry
from ics_apps.probes.leakage import gradient_leakage, names_of
from ics_apps.probes.preserve import ProbeError


def sources(model: nn.Module, *args: Any, **options: Any) -> list[str]:
    return [module.module for module in gradient_leakage(model, args, **options).sources]


def images(batch: int = 8) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def convolutional(norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), make_norm(norm, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(8, 4, 3)
    )


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*self.parts, *args, **kwargs)


# Known answers.


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_the_ratio_is_that_of_the_jacobian(batch: int, weight: float) -> None:
    # y_i = x_i + weight * mean(x): others have weight / B, its own 1 + weight / B.
    model = nn.Sequential(Apply(lambda x: x + weight * x.mean(0)))
    found = gradient_leakage(model, [torch.randn(batch, 1, dtype=torch.float64)])
    expected = (weight / batch) / (1 + weight / batch)
    assert found.ratio == pytest.approx(expected, rel=1e-12)
    assert [(row.module, row.ratio) for row in found.modules] == [("", 0.0), ("0", pytest.approx(expected, rel=1e-12))]


@pytest.mark.parametrize("sample", [0, 1, 2])
def test_the_mean_is_over_the_other_samples(sample: int) -> None:
    mixing = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
    found = gradient_leakage(Apply(lambda x: mixing @ x), [torch.randn(3, 1)], sample=sample)
    assert found.ratio == pytest.approx([3.0, 1.5, 0.0][sample])


@pytest.mark.parametrize("batch", [2, 8, 64])
@pytest.mark.parametrize("norm", ["none", "instance", "layer_chw", "layer_c", "group", "rms"])
def test_norms_of_one_sample_leak_exactly_nothing(norm: str, batch: int) -> None:
    found = gradient_leakage(convolutional(norm), [images(batch)])
    assert found.ratio == 0.0
    assert {module.ratio for module in found.modules} == {0.0}


def test_batch_norm_in_training_leaks_one_part_in_the_batch_size() -> None:
    ratios = {}
    for batch in (2, 8, 64):
        torch.manual_seed(1)
        model = convolutional("batch")
        found = gradient_leakage(model, [images(batch)])
        assert [module.module for module in found.sources] == ["1"]
        assert 0 < found.ratio < 1
        ratios[batch] = found.sources[0].ratio
    # B R is the same for all, but for the random direction of 8 channels: about 15 % either way.
    products = [batch * ratio for batch, ratio in ratios.items()]
    assert max(products) < 2 * min(products)


def test_batch_norm_in_evaluation_does_not_leak() -> None:
    assert gradient_leakage(convolutional("batch").eval(), [images()]).ratio == 0.0


@pytest.mark.parametrize("norm", [name for name in list_norms() if 2 in norm_entry(name).dims])
def test_every_norm_of_the_registry_leaks_as_it_promises(norm: str) -> None:
    entry = norm_entry(norm)
    if entry.acts_on_weight or entry.needs_condition:
        pytest.skip("it needs more than an input")
    found = gradient_leakage(nn.Sequential(make_norm(norm, 8)), [torch.randn(4, 8, 5, 5)])
    assert (found.ratio > 0) == entry.mixes_samples


# Localisation.


class Reshaped(nn.Module):
    """A channel-first view of a batch-first tensor: rows and channels change places, values do not."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        return x.reshape(channels, batch, *x.shape[2:]).transpose(0, 1)


def test_a_wrong_reshape_deep_inside_is_found_where_it_is() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Tanh(), Reshaped()), nn.GroupNorm(2, 4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), block, nn.Flatten(), nn.Linear(64, 2))
    assert sources(model, images()) == ["1.1.1"]


def test_a_wrong_reshape_between_modules_is_laid_to_the_module_that_contains_it() -> None:
    def between(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        y = first(x)
        return second(y.reshape(y.shape[1], y.shape[0], *y.shape[2:]).transpose(0, 1))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Apply(between, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), nn.Tanh())
    assert sources(model, images()) == ["1"]


def test_a_mix_in_the_model_itself_is_laid_to_the_model() -> None:
    assert sources(Apply(lambda part, x: part(x) + x.mean(0), nn.Tanh()), images()) == [""]
    assert sources(Apply(lambda part, x: part(x.flip(0)), nn.Tanh()), images(3), sample=0) == [""]


def test_every_module_that_mixes_is_found_not_only_the_last() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), Reshaped(), nn.BatchNorm2d(4), nn.ReLU())
    assert sources(model, images()) == ["0", "2", "3"]


def test_a_module_beside_a_mixing_one_inside_it_is_judged_by_its_own_code() -> None:
    def innocent(norm: nn.Module, x: Tensor) -> Tensor:
        return x + norm(x).relu()

    def guilty(norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) + x.mean(0)

    for function, expected in ((innocent, ["parts.0"]), (guilty, ["", "parts.0"])):
        assert sources(Apply(function, nn.BatchNorm2d(3)), images()) == expected


def test_a_mix_behind_a_gate_that_is_shut_is_found() -> None:
    gate = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.zeros_(gate.weight)
    found = gradient_leakage(nn.Sequential(nn.BatchNorm2d(3), gate), [images()])
    assert [module.module for module in found.sources] == ["0"]
    assert math.isnan(found.ratio)


def test_a_norm_that_is_a_constant_passes_nothing_and_has_no_ratio() -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.zeros_(norm.weight)
    found = gradient_leakage(nn.Sequential(nn.Conv2d(3, 3, 1), norm), [images()])
    assert [row.ratio for row in found.modules] == pytest.approx([0.0, 0.0, math.nan], nan_ok=True)
    assert found.ratio == 0.0


def test_samples_that_change_places_depend_on_others_only() -> None:
    swap = Apply(lambda x: x.flip(0))
    assert gradient_leakage(swap, [images()]).ratio == math.inf
    twice = nn.Sequential(swap, nn.Tanh(), swap)
    found = gradient_leakage(twice, [images()])
    # Put back to where they were, no sample has seen another.
    assert found.ratio == 0.0
    assert [module.module for module in found.sources] == ["0+2"]


@pytest.mark.parametrize("reverse", [False, True])
def test_attention_over_the_wrong_axis_is_seen_although_it_only_looks_one_way(reverse: bool) -> None:
    def looking(x: Tensor) -> Tensor:
        return x.flip(0).cumsum(0).flip(0) if reverse else x.cumsum(0)

    assert sources(nn.Sequential(Apply(looking)), images(5)) == ["0"]


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x *= 2
        x += x.mean(0)
        return x


def test_code_that_writes_into_its_input_is_found_and_the_callers_batch_is_left_alone() -> None:
    x = images()
    before = x.clone()
    model = nn.Sequential(
        Overwriting(), nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), Overwriting(), nn.ReLU(inplace=True)
    )
    assert sources(model, x) == ["0", "3"]
    assert torch.equal(x, before)


def test_checkpointed_layers_are_told_apart_too() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model = Apply(lambda part, head, x: head(checkpoint(part, x, use_reentrant=False)), inner, nn.Conv2d(4, 2, 1))
    assert sources(model, images()) == ["parts.0.1"]


def test_a_compiled_model_is_judged_by_its_own_code() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    compiled = torch.compile(model, backend="eager")
    compiled(images())
    assert [module.module for module in gradient_leakage(compiled, [images()]).sources] == ["1"]


# The allow list and the sentence.


@pytest.mark.parametrize("allow", ["1", "BatchNorm2d", "_BatchNorm", "[12]"])
def test_what_may_mix_stays_in_the_table(allow: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Reshaped())
    found = gradient_leakage(model, [images()], allow=[allow])
    rows = {row.module: (row.is_source, row.allowed) for row in found.modules}
    assert rows["1"] == (True, True)
    assert rows["0"] == (False, False)
    assert [row.module for row in found.sources] == ([] if allow == "[12]" else ["2"])


def test_what_is_inside_a_module_that_may_mix_may_too() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert sources(model, images(), allow=["0"]) == []


def test_an_entry_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"'BatchNorm2' matches no module .* did you mean 'BatchNorm2d'"):
        gradient_leakage(nn.Sequential(nn.BatchNorm2d(3)), [images()], allow=["BatchNorm2"])


def test_the_sentence_names_module_ratio_and_remedy() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    found = gradient_leakage(model, [images()], name="net.d")
    text = found.describe()
    assert f"net.d.0 (BatchNorm2d), ratio {found.sources[0].ratio:.2g}" in text
    assert "`allow`" in text
    assert [row.module for row in found.modules] == ["net.d", "net.d.0", "net.d.1"]
    kept = gradient_leakage(model, [images()], allow=["0"])
    assert kept.describe() == "No module that is not allowed to mixes the samples of a batch."
    assert gradient_leakage(nn.ReLU(), [images()]).describe() == "No module mixes the samples of a batch."


def test_a_shared_module_has_all_its_names() -> None:
    act = nn.ReLU()
    assert list(names_of(nn.Sequential(act, act)).values()) == ["", "0+1"]


# What must be left alone.


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 1, 1)
    )
    model[3].weight.requires_grad_(False)
    model(images()).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    wanted = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    assert gradient_leakage(model, [images()]).ratio > 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) if gradient is None else torch.equal(p.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_the_model_is_left_as_it_was_when_the_probe_fails() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Apply(lambda x: x.mean()))
    with pytest.raises(ProbeError):
        gradient_leakage(model, [torch.randn(4, 3)])
    assert int(model[0].num_batches_tracked) == 0
    assert all(p.requires_grad for p in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())


def test_it_works_under_autocast_and_without_gradients_around() -> None:
    model = convolutional("batch")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert sources(model, images()) == ["1"]
        assert gradient_leakage(convolutional("group"), [images()]).ratio == 0.0


def test_the_same_call_gives_the_same_figures() -> None:
    model = convolutional("batch")
    assert gradient_leakage(model, [images()]) == gradient_leakage(model, [images()])


def test_a_penalty_on_gradients_inside_the_forward_is_no_leak() -> None:
    def energy(net: nn.Module, x: Tensor) -> Tensor:
        slope: Tensor = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
        return slope

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 1, 1))
    assert gradient_leakage(Apply(energy, net), [images()]).ratio == 0.0


def test_attention_of_each_sample_alone_does_not_leak() -> None:
    def attend(q: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q(x), x, x)

    assert gradient_leakage(Apply(attend, nn.Linear(8, 8)), [torch.randn(4, 6, 8)]).ratio == 0.0
