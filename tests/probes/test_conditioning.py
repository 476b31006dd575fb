"""Eigenvalues of the second moments of layer inputs, against matrices that are written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ics_apps.probes import conditioning
from ics_apps.probes.conditioning import LayerConditioning, input_conditioning
from ics_apps.probes.preserve import ProbeError


def of(module: nn.Module, *inputs: Tensor) -> LayerConditioning:
    """The one layer, called with each of the inputs."""
    (found,) = input_conditioning(nn.ModuleDict({"layer": module}), lambda: [module(x) for x in inputs])
    return found


def expected(rows: Tensor) -> tuple[float, float, float]:
    rows = rows.double()
    values = np.linalg.eigvalsh((rows.T @ rows / len(rows)).numpy()).clip(min=0)
    t = 1e-3 * values.mean()
    return (values[-1] + t) / (values[0] + t), values.sum() ** 2 / np.square(values).sum(), t


def figures(found: LayerConditioning) -> tuple[float, float, float]:
    return found.condition, found.effective_rank, found.damping


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Correlated along no axis, of a mean that is not 0."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def test_whitened_features_have_condition_one_and_full_rank() -> None:
    x = torch.cat([torch.eye(4), -torch.eye(4)])
    found = of(nn.Linear(4, 1), x)
    assert (found.layer, found.order, found.features) == ("layer", 0, 4)
    assert figures(found) == pytest.approx((1, 4, 1e-3 / 4))


def test_features_that_are_all_alike_have_rank_one_and_the_worst_condition() -> None:
    found = of(nn.Linear(4, 1), torch.ones(8, 4))
    assert found.effective_rank == pytest.approx(1)
    assert found.condition == pytest.approx(1 + 1000 * 4)


def test_a_mean_far_from_zero_is_bad_conditioning() -> None:
    x = draw(200, 4)
    assert of(nn.Linear(4, 1), x + 10).condition > 100 * of(nn.Linear(4, 1), x).condition


@pytest.mark.parametrize("shape", [(50, 6), (10, 5, 6), (2, 3, 4, 6)])
def test_a_linear_layer_has_one_row_a_position(shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    assert figures(of(nn.Linear(6, 2), x)) == pytest.approx(expected(x.reshape(-1, 6)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 2, 3), (4, 3, 9)),
        (nn.Conv2d(3, 2, 3), (4, 3, 9, 8)),
        (nn.Conv3d(3, 2, 3), (2, 3, 5, 6, 4)),
        (nn.ConvTranspose2d(3, 2, 3), (4, 3, 5, 5)),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 4, 5, 5)),
    ],
)
def test_a_convolution_has_one_row_of_channels_a_position(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    assert figures(of(layer, x)) == pytest.approx(expected(x.transpose(0, 1).flatten(1).T))


def test_a_convolution_of_one_sample_without_a_batch_axis_has_its_channels_too() -> None:
    x = draw(3, 9, 8)
    assert figures(of(nn.Conv2d(3, 2, 3), x)) == figures(of(nn.Conv2d(3, 2, 3), x[None]))


@pytest.mark.parametrize("rows", [1, 5, 20, 21])
def test_fewer_rows_than_features_leave_eigenvalues_of_zero(rows: int) -> None:
    x = draw(rows, 20)
    found = of(nn.Linear(20, 1), x)
    assert figures(found) == pytest.approx(expected(x))
    assert found.effective_rank <= min(rows, 20) * (1 + 1e-12)


@pytest.mark.parametrize("parts", [[3, 4], [30, 1], [1, 30], [8, 8, 8]])
def test_calls_of_a_shared_layer_are_added_up(parts: list[int]) -> None:
    x = draw(sum(parts), 12)
    assert figures(of(nn.Linear(12, 1), *x.split(parts))) == pytest.approx(expected(x))


def test_many_rows_are_added_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "_CHUNK", 7)
    x = draw(50, 6)
    assert figures(of(nn.Linear(6, 2), x)) == pytest.approx(expected(x))


def test_an_input_that_is_overwritten_later_counts_as_it_was() -> None:
    layer, x = nn.Linear(6, 2), draw(4, 6)
    true = expected(x.clone())

    def forward() -> None:
        layer(x)
        x.zero_()

    (found,) = input_conditioning(nn.Sequential(layer), forward)
    assert figures(found) == pytest.approx(true)


def test_layers_come_in_the_order_of_their_first_calls_and_those_not_called_are_left_out() -> None:
    model = nn.ModuleDict({"last": nn.Linear(3, 1), "first": nn.Conv1d(2, 3, 1), "unused": nn.Linear(2, 2)})
    x = draw(4, 2, 3)
    found = input_conditioning(model, lambda: model["last"](model["first"](input=x)))
    assert [(each.layer, each.order, each.features) for each in found] == [("first", 0, 2), ("last", 1, 3)]


def test_layers_may_be_chosen() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv1d(4, 1, 1))
    x = draw(4, 3)
    assert [each.layer for each in input_conditioning(model, lambda: model(x), layers="1")] == ["1"]
    assert [each.layer for each in input_conditioning(model, lambda: model(x), max_layers=1, layers="linear")] == ["1"]


@pytest.mark.parametrize("x", [torch.zeros(5, 3), torch.full((5, 3), math.inf), torch.full((2, 3), math.nan)])
def test_inputs_of_zero_or_not_finite_have_no_condition(x: Tensor) -> None:
    found = of(nn.Linear(3, 1), x)
    assert found.features == 3
    assert all(math.isnan(figure) for figure in figures(found))


def test_a_layer_with_too_many_features_and_rows_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "WIDEST", 5)
    assert math.isnan(of(nn.Linear(6, 1), draw(6, 6)).condition)
    assert math.isnan(of(nn.Linear(6, 1), draw(5, 6), draw(5, 6)).condition)
    x = draw(5, 6)
    assert figures(of(nn.Linear(6, 1), x)) == pytest.approx(expected(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_float64_whatever_the_input_is(dtype: torch.dtype) -> None:
    x = (draw(5000, 3) * 100).to(dtype)
    assert figures(of(nn.Linear(3, 1, dtype=dtype), x)) == pytest.approx(expected(x), rel=1e-9)


def test_nothing_stays_on_the_model() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(RuntimeError):
        input_conditioning(nn.Sequential(model), lambda: model(torch.ones(2, 4)))
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("model", "layers", "says"),
    [
        (nn.Sequential(nn.ReLU(), nn.Bilinear(2, 2, 1)), None, "no convolution or linear layer"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "norm", "1 is no convolution or linear layer"),
        (nn.Sequential(nn.Linear(2, 2)), None, "was called"),
    ],
)
def test_a_model_with_nothing_to_measure_is_refused(model: nn.Module, layers: str | None, says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        input_conditioning(model, lambda: None, layers)
