"""Which layers are watched, and what their hooks leave behind."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import NormalizedConcat, make_norm
from ics_apps.probes.taps import Layer, Tap, kind_of, select_layers


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
        (nn.LSTM(1, 1), None),
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


class Counting:
    """A sink that counts what it is given."""

    def __init__(self) -> None:
        self.open, self.before_calls, self.after_calls = False, 0, 0

    def before(self, tap: Tap, args: tuple[Any, ...]) -> None:
        self.before_calls += 1

    def after(self, tap: Tap, output: Any) -> None:
        self.after_calls += 1


def test_a_tap_passes_outputs_on_only_while_its_sink_is_open() -> None:
    module, sink = nn.Linear(1, 1), Counting()
    Tap(Layer(("0",), "linear", module), 0, sink).attach(wants_input=True)
    module(torch.ones(1))
    sink.open = True
    module(torch.ones(1))
    assert (sink.before_calls, sink.after_calls) == (1, 1)


@pytest.mark.parametrize("how", ["deepcopy", "file", "shallow"])
def test_a_copy_of_a_watched_model_never_reports(how: str) -> None:
    module, sink = nn.Linear(1, 1), Counting()
    Tap(Layer(("0",), "linear", module), 0, sink).attach(wants_input=True)
    sink.open = True
    if how == "file":
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(module) if how == "deepcopy" else copy.copy(module)
    twin(torch.ones(1))
    assert (sink.before_calls, sink.after_calls) == (0, 0)
    module(torch.ones(1))
    assert (sink.before_calls, sink.after_calls) == (1, 1)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_under_activation_checkpointing_is_not_passed_on(use_reentrant: bool) -> None:
    module, sink = nn.Linear(2, 2), Counting()
    Tap(Layer(("0",), "linear", module), 0, sink).attach(wants_input=False)
    sink.open = True
    x = torch.ones(1, 2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant).sum().backward()
    assert sink.after_calls == 1
