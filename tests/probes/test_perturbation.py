"""What one sample's output does when the others are replaced: what gradients see and what they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import list_norms, make_norm, norm_entry
from ics_apps.probes.leakage import gradient_leakage
from ics_apps.probes.perturbation import perturbation_leakage
from ics_apps.probes.preserve import ProbeError


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0).detach()) / x.std(0).detach()


def above_the_mean(x: Tensor) -> Tensor:
    return x * (x > x.mean(0))


def by_rank(x: Tensor) -> Tensor:
    return x / (1 + (x[None] > x[:, None]).sum(1))


@pytest.mark.parametrize("function", [standardised, above_the_mean, by_rank])
def test_what_has_no_gradient_is_found_and_localised(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([[9.0, 4.0], [5.0, 1.0], [3.0, 5.0], [1.0, 8.0], [2.0, 9.0]])
    model = nn.Sequential(nn.Identity(), nn.Sequential(Apply(function)), nn.Tanh())
    assert gradient_leakage(model, [x]).ratio == 0.0
    found = perturbation_leakage(model, [x])
    assert found.leaks
    assert found.largest > 0.01
    assert found.tolerance == 0.0
    assert found.source == "1.0"


@pytest.mark.parametrize("norm", [name for name in list_norms() if 2 in norm_entry(name).dims])
def test_every_norm_of_the_registry_leaks_as_it_promises(norm: str) -> None:
    entry = norm_entry(norm)
    if entry.acts_on_weight or entry.needs_condition:
        pytest.skip("it needs more than an input")
    found = perturbation_leakage(nn.Sequential(make_norm(norm, 8)), [torch.randn(4, 8, 5, 5)])
    assert found.leaks == entry.mixes_samples
    assert (found.source is not None) == entry.mixes_samples


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_random_numbers_and_buffers_are_the_same_in_both_passes(norm: str) -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), make_norm(norm, 8), nn.Dropout(0.5)
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = perturbation_leakage(model, [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))])
    assert found.leaks == (norm == "batch")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_tokens_and_integer_outputs_are_compared() -> None:
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding(20, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), Apply(Tensor.argmax))
    with pytest.raises(ProbeError, match="have no axis of the batch's 4 samples"):
        perturbation_leakage(model, [ids])
    assert perturbation_leakage(Apply(lambda x: x > x.float().mean(0)), [torch.tensor([[9], [3], [2]])]).leaks
    assert not perturbation_leakage(Apply(lambda x: x.argsort(1)), [ids]).leaks


def test_a_change_within_the_tolerance_is_none() -> None:
    # 2 -> 2 + 0.001 * (mean change of 1.5).
    model = Apply(lambda x: x + 0.001 * x.mean(0))
    x = torch.tensor([[5.0], [2.0]], dtype=torch.float64)
    found = perturbation_leakage(model, [x], tolerance=0.01)
    assert found.largest == pytest.approx(0.0015 / 2.0035)
    assert not found.leaks
    assert perturbation_leakage(model, [x], tolerance=1e-4).leaks


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ProbeError, match="All samples of the batch are alike"):
        perturbation_leakage(nn.ReLU(), [torch.ones(4, 3)])
    with pytest.raises(ProbeError, match="A batch of 1"):
        perturbation_leakage(nn.ReLU(), [torch.ones(1, 3)])
    with pytest.raises(ProbeError, match="not finite"):
        perturbation_leakage(Apply(lambda x: x / 0), [torch.arange(3.0)[:, None]])
    with pytest.raises(ValueError, match="tolerance is -1"):
        perturbation_leakage(nn.ReLU(), [torch.ones(4, 3)], tolerance=-1)
