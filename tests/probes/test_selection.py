"""Which layers are watched, and what is said about those that are not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import NormalizedConcat, make_norm
from ics_apps.probes.selection import kind_of, select_layers


class UpBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.concat = NormalizedConcat({"skip": 2, "up": 2}, {"skip": "instance", "up": "none"})
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.concat(skip=x, up=x))
        return y


def kinds(model: nn.Module, layers: Any = None, max_layers: int = 64) -> dict[str, str]:
    return {layer.name: layer.kind for layer in select_layers(model, layers, max_layers).chosen}


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.BatchNorm1d(1), "norm"),
        (nn.SyncBatchNorm(1), "norm"),
        (nn.InstanceNorm3d(1), "norm"),
        (nn.LayerNorm(1), "norm"),
        (nn.RMSNorm(1), "norm"),
        (nn.LocalResponseNorm(2), "norm"),
        (make_norm("dyt", 4), "norm"),
        (make_norm("filter_response", 4), "norm"),
        (nn.Conv3d(1, 1, 1), "conv"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)), "conv"),
        (nn.Linear(1, 1), "linear"),
        (nn.PReLU(), "activation"),
        (nn.Softmax(dim=0), "activation"),
        (nn.MultiheadAttention(2, 1), None),
        (nn.Dropout(), None),
        (nn.MaxPool2d(2), None),
        (nn.Identity(), None),
        (nn.LSTM(1, 1), "recurrent"),
        (nn.GRUCell(1, 1), "recurrent"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_kind_of_a_layer(module: nn.Module, kind: str | None) -> None:
    assert kind_of(module) == kind


def test_streams_before_a_concatenation_are_watched_even_when_they_are_not_normalised() -> None:
    watched = kinds(nn.Sequential(UpBlock()))
    assert watched == {"0.concat.skip": "stream", "0.concat.up": "stream", "0.conv": "conv"}


def test_a_shared_module_appears_once_with_all_its_names() -> None:
    act = nn.ReLU()
    assert kinds(nn.Sequential(act, nn.Linear(1, 1), act)) == {"0+2": "activation", "1": "linear"}


def test_names_of_wrappers_are_left_out_of_the_path() -> None:
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(1, 1))))
    assert kinds(model) == {"0.0": "linear"}


def test_networks_inside_a_metric_are_not_watched() -> None:
    metrics = pytest.importorskip("torchmetrics")

    class Perceptual(metrics.MeanMetric):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(1, 1, 1)

    assert kinds(nn.ModuleDict({"net": nn.Linear(1, 1), "metric": Perceptual()})) == {"net": "linear"}


MODEL = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU()), nn.Flatten(), nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("norm", ["0.1"]),
        ("Conv2d", ["0.0"]),
        (nn.ReLU, ["0.2"]),
        ("0.*", ["0.0", "0.1", "0.2"]),
        ("0", ["0"]),
        ("Flatten", ["1"]),
        (lambda name, module: name.endswith("2"), ["0.2", "2"]),
        (["norm", "2"], ["0.1", "2"]),
    ],
)
def test_layers_are_chosen_by_kind_class_name_pattern_or_test(choice: Any, names: list[str]) -> None:
    assert list(kinds(MODEL, choice)) == names


def test_a_choice_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'BatchNrm2d' matches no layer .* did you mean 'BatchNorm2d'"):
        select_layers(MODEL, ["Conv2d", "BatchNrm2d"])


def test_the_budget_keeps_streams_and_norms_first_and_thins_the_rest_evenly() -> None:
    convs = [nn.Conv2d(1, 1, 1) for _ in range(9)]
    model = nn.Sequential(UpBlock(), nn.BatchNorm2d(2), *convs)
    selection = select_layers(model, max_layers=6)
    assert [layer.name for layer in selection.chosen] == ["0.concat.skip", "0.concat.up", "1", "2", "6", "9"]
    assert "6 of 13 layers are watched" in selection.describe()
    assert "left out: 7 conv" in selection.describe()


def test_the_budget_serves_recurrent_layers_after_convolutions_and_before_linear_ones() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.GRU(1, 1), nn.Conv2d(1, 1, 1), nn.Linear(1, 1))
    assert kinds(model, max_layers=2) == {"1": "recurrent", "2": "conv"}


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        return torch.jit.trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))


def test_layers_inside_a_scripted_module_are_left_out_with_a_reason() -> None:
    selection = select_layers(nn.Sequential(nn.Linear(2, 2), scripted()))
    assert [layer.name for layer in selection.chosen] == ["0"]
    assert selection.describe() == (
        "1 layers are watched. Layers inside a torch.jit.ScriptModule call no hooks and are left out: 1."
    )


def test_a_scripted_module_itself_can_be_watched_and_a_layer_inside_cannot() -> None:
    model = nn.Sequential(nn.Linear(2, 2), scripted())
    assert kinds(model, "1") == {"1": "stream"}
    with pytest.raises(
        ValueError, match=r"'1\.0' matches no layer outside the torch\.jit\.ScriptModule 1, whose layers"
    ):
        select_layers(model, "1.0")


def test_data_parallel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The model at 0 is an nn\.DataParallel, .* use DistributedDataParallel"):
        select_layers(nn.Sequential(nn.DataParallel(nn.Linear(1, 1))))
