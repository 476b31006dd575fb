"""Which weights the loss sees only the direction of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ics_apps.norms import make_norm
from ics_apps.probes.objective import Objective
from ics_apps.probes.scale_invariance import ScaleInvariantWeight, scale_invariant_weights

NORMS = {
    "batch": lambda c: nn.BatchNorm2d(c),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "group": lambda c: nn.GroupNorm(2, c),
    "layer": lambda c: nn.GroupNorm(1, c),
    "rms": lambda c: make_norm("rms", c, 2),
}
ABSORBS_BIAS = {"batch", "instance"}


def moved(model: nn.Module, by: float = 0.3) -> nn.Module:
    """No parameter is at its start value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


def net(norm: Callable[[int], nn.Module], bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=bias),
        norm(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 8, 3, padding=1, groups=2, bias=bias),
        norm(8),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(8 * 25, 3),
    )
    moved(model)
    return model


def found_in(model: nn.Module, dtype: torch.dtype | None = None) -> list[ScaleInvariantWeight]:
    generator = torch.Generator().manual_seed(2)
    x, target = torch.randn(6, 2, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    x = x.to(next(model.parameters()).dtype)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return F.cross_entropy(model(x).float() if dtype else model(x), target)

    with Objective(model, loss) as objective:
        return scale_invariant_weights(objective)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("precision", ["float64", "float32", "autocast"])
def test_the_weights_before_a_norm_are_found_and_no_others(norm: str, precision: str) -> None:
    model = net(NORMS[norm])
    if precision == "float64":
        model.double()
    found = found_in(model, torch.bfloat16 if precision == "autocast" else None)
    assert [(weight.name, weight.bias) for weight in found] == [("0.weight", None), ("3.weight", None)]
    assert [weight.per_filter for weight in found] == [norm in ABSORBS_BIAS] * 2
    for weight in found:
        assert weight.norm == pytest.approx(float(model.get_parameter(weight.name).detach().norm()), rel=1e-6)
        assert abs(weight.cosine) < 0.01
        assert weight.loss_change <= weight.tolerance


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_a_bias_is_scaled_along_unless_the_norm_takes_it_away(norm: str, precision: str) -> None:
    found = found_in(net(NORMS[norm], bias=True), torch.bfloat16 if precision == "autocast" else None)
    biases = [None, None] if norm in ABSORBS_BIAS else ["0.bias", "3.bias"]
    assert [(weight.name, weight.bias) for weight in found] == list(zip(("0.weight", "3.weight"), biases, strict=True))


def test_a_nets_weights_before_layer_norm_over_features_are_found() -> None:
    torch.manual_seed(0)
    model = moved(nn.Sequential(nn.Flatten(), nn.Linear(50, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 3)))
    assert [(weight.name, weight.per_filter) for weight in found_in(model)] == [("1.weight", False)]


@pytest.mark.parametrize("norm", [lambda c: nn.Identity(), lambda c: nn.BatchNorm2d(c).eval()], ids=["none", "frozen"])
def test_without_statistics_of_the_batch_there_are_none(norm: Callable[[int], nn.Module]) -> None:
    assert found_in(net(norm)) == []
    assert found_in(net(norm, bias=True)) == []


def test_in_evaluation_mode_batch_norm_has_none() -> None:
    assert found_in(net(NORMS["batch"]).eval()) == []
    assert len(found_in(net(NORMS["layer"]).eval())) == 2


def test_unclipped_batch_renorm_passes_eulers_test_only() -> None:
    # Its corrections have no gradient, but its output follows the running statistics.
    open_limits = {"warmup_steps": 0, "r_steps": 1, "d_steps": 1, "r_max": 1e3, "d_max": 1e3}
    model = net(lambda c: make_norm({"name": "batch_renorm", **open_limits}, c, 2)).double()
    for _ in range(3):
        model(torch.randn(6, 2, 5, 5).double())
    with Objective(
        model, lambda: model(torch.ones(6, 2, 5, 5).double().cumsum(0).cumsum(3)).square().mean()
    ) as objective:
        weight, [gradient, *_] = objective.parameters[0].detach(), objective.gradient()
        assert abs(float((weight * gradient).sum())) < 1e-3 * float(weight.norm() * gradient.norm())
        assert scale_invariant_weights(objective) == []


@pytest.mark.parametrize(
    ("attach", "name", "per_filter"),
    [
        (parametrizations.weight_norm, "1.parametrizations.weight.original1", True),
        (parametrizations.spectral_norm, "1.parametrizations.weight.original", False),
    ],
)
def test_a_weight_that_is_normalised_itself_is_scaled_without_its_bias(
    attach: Callable[[nn.Module], nn.Module], name: str, per_filter: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), attach(nn.Linear(50, 8)), nn.Tanh(), nn.Linear(8, 3))
    assert [(weight.name, weight.bias, weight.per_filter) for weight in found_in(model)] == [(name, None, per_filter)]


def test_gains_and_shifts_are_never_listed_even_where_another_norm_follows() -> None:
    torch.manual_seed(0)
    # Each layer norm has a gain of two axes; at its start values, shift 0, the first one's could be scaled.
    model = nn.Sequential(nn.LayerNorm((5, 5)), nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten())
    model.append(nn.Linear(36, 3))
    assert [weight.name for weight in found_in(model)] == ["1.weight"]


def test_a_weight_that_the_loss_does_not_depend_on_is_not_listed() -> None:
    model = net(NORMS["batch"])
    assert isinstance(model[1], nn.BatchNorm2d)
    nn.init.zeros_(model[1].weight)
    assert [weight.name for weight in found_in(model)] == ["3.weight"]


def test_an_eps_that_matters_makes_a_weight_that_is_not_invariant() -> None:
    model = net(NORMS["batch"]).double()
    first = model.get_parameter("0.weight")
    for factor, listed in ((1.0, True), (1e-3, False)):
        # The variance before the norm is near 1 and near 1e-6; eps is 1e-5.
        first.data.mul_(factor)
        assert ("0.weight" in [weight.name for weight in found_in(model)]) == listed


def test_the_cosine_is_that_of_the_eps() -> None:
    """<g, W> = dL/dx <x> eps / (v + eps): it falls with the square of the weight's length."""
    model = net(NORMS["layer"]).double()
    cosines = []
    for _ in range(3):
        cosines.append(next(weight.cosine for weight in found_in(model) if weight.name == "0.weight"))
        model.get_parameter("0.weight").data.mul_(2)
    assert cosines[0] / cosines[1] == pytest.approx(4, rel=1e-2)
    assert cosines[1] / cosines[2] == pytest.approx(4, rel=1e-2)


def test_a_tolerance_out_of_range_is_told() -> None:
    model = nn.Linear(1, 1)
    with (
        Objective(model, lambda: model(torch.ones(1, 1)).sum()) as objective,
        pytest.raises(ValueError, match="tolerance is 0"),
    ):
        scale_invariant_weights(objective, tolerance=0)


def test_the_model_is_the_same_to_the_bit_afterwards() -> None:
    model = net(NORMS["batch"], bias=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert found_in(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_net_that_is_not_normalised_has_none_however_little_its_loss_tells() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())]
        # Fresh weights behind fresh biases: the loss hardly sees the first layers.
        assert found_in(nn.Sequential(nn.Flatten(), nn.Linear(50, 64), *layers, nn.Linear(64, 3))) == []
