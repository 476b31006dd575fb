"""Which parameters are one layer, and the order of layers, read off one forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ics_apps.norms import make_norm, norm_context
from ics_apps.probes.parameter_layers import ParameterLayer, choose_layers, parameter_layers
from ics_apps.probes.preserve import ProbeError


def layers_of(model: nn.Module, forward: Callable[[], object]) -> dict[str, list[str]]:
    """The first names of the parameters of each layer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {layer.name: [names[id(p)] for p in layer.parameters] for layer in parameter_layers(model, forward)}


class Backwards(nn.Module):
    """Its layers are registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.shortcut = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).relu() + self.shortcut(x))
        return y


def test_layers_come_in_the_order_in_which_they_run() -> None:
    model = Backwards()
    found = parameter_layers(model, lambda: model(torch.ones(3, 4)))
    assert [(layer.name, layer.order) for layer in found] == [("first", 0), ("shortcut", 1), ("last", 2)]


def test_a_norm_and_an_activation_belong_to_the_layer_before() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Conv2d(2, 2, 1, bias=False), nn.GroupNorm(1, 2)
    )
    assert layers_of(model, lambda: model(torch.ones(2, 1, 4, 4))) == {
        "0": ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"],
        "3": ["3.weight", "4.weight", "4.bias"],
    }


def test_a_norm_before_any_other_layer_is_a_layer_of_its_own() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    assert list(layers_of(model, lambda: model(torch.ones(2, 4)))) == ["0", "1"]


@pytest.mark.parametrize(
    "norm",
    [
        {"name": "batch_channel", "num_groups": 2},
        "batch_layer",
        "switchable",
        {"name": "conditional_batch", "label_features": 3},
    ],
)
def test_what_is_inside_a_norm_belongs_to_it(norm: str | dict[str, object]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), make_norm(norm, 4, 2))

    def forward() -> None:
        with norm_context(label=torch.ones(2, 3)):
            model(torch.ones(2, 1, 4, 4))

    assert list(layers_of(model, forward)) == ["0"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.middle = nn.Linear(4, 4)
        self.embedding = nn.Embedding(5, 4)
        self.embedding.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.middle(self.embedding(x)))
        return y


def test_a_tied_parameter_belongs_to_the_layer_that_uses_it_first() -> None:
    model = Tied()
    assert layers_of(model, lambda: model(torch.tensor([0, 4]))) == {
        "embedding": ["head.weight"],
        "middle": ["middle.weight", "middle.bias"],
        "head": ["head.bias"],
    }


def test_a_module_that_runs_twice_is_one_layer_with_all_its_names() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared, nn.LayerNorm(4))
    assert layers_of(model, lambda: model(torch.ones(2, 4))) == {
        "0+2": ["0.weight", "0.bias", "3.weight", "3.bias"],
        "1": ["1.weight", "1.bias"],
    }


def test_frozen_parameters_are_left_out_but_a_norm_after_them_stays_theirs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    assert layers_of(model, lambda: model(torch.ones(2, 4))) == {
        "0": ["1.weight", "1.bias"],
        "2": ["2.weight", "2.bias"],
    }


class Holder(nn.Module):
    """Parameters beside children, in lists, and at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.matrices = nn.ParameterList(nn.Parameter(torch.eye(4)) for _ in range(2))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.patch = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x) + self.token
        for matrix in self.matrices:
            y = y @ matrix
        z: Tensor = self.attention(y, y, y)[0]
        return z


def test_parameters_used_without_a_module_call_have_their_place_too() -> None:
    model = Holder()
    found = layers_of(model, lambda: model(torch.ones(2, 3, 4)))
    assert list(found) == ["patch", "Holder", "matrices.0", "matrices.1", "attention", "attention.out_proj"]
    assert found["attention.out_proj"] == ["attention.out_proj.weight", "attention.out_proj.bias"]


def test_the_parts_of_a_parametrized_weight_belong_to_the_module_that_they_shape() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 1))
    assert [len(parameters) for parameters in layers_of(model, lambda: model(torch.ones(2, 4))).values()] == [3, 2]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_autocast_change_nothing(reentrant: bool) -> None:
    model, x = Backwards(), torch.ones(3, 4, requires_grad=True)

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = checkpoint(model, x, use_reentrant=reentrant)
        return y

    assert list(layers_of(model, forward)) == ["first", "shortcut", "last"]


def test_weights_that_autocast_has_cast_before_are_seen() -> None:
    model, x = Backwards(), torch.ones(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        assert list(layers_of(model, lambda: model(x))) == ["first", "shortcut", "last"]


def test_no_hook_stays_on_the_model() -> None:
    model = Tied()
    parameter_layers(model, lambda: model(torch.tensor([0])))
    assert not any(module._forward_pre_hooks for module in model.modules())


def found_in(model: nn.Module) -> list[ParameterLayer]:
    return parameter_layers(model, lambda: model(torch.ones(2, 4)))


def test_layers_are_chosen_by_name_pattern_class_and_kind() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.LayerNorm(4))
    found = found_in(model)
    chosen = [
        [layer.name for layer in choose_layers(model, found, choice)] for choice in ("2", "[01]", nn.Linear, ["3", "1"])
    ]
    assert chosen == [["2"], ["0", "1"], ["0", "1", "2", "3"], ["1", "3"]]


def test_too_many_layers_are_thinned_evenly() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
    assert [layer.order for layer in choose_layers(model, found_in(model), None, 3)] == [1, 4, 7]


def test_a_misspelt_layer_and_one_without_weights_of_its_own_are_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="did you mean 'Linear'"):
        choose_layers(model, found_in(model), "Liner")
    with pytest.raises(ProbeError, match="no module with weights of its own to train; choose of: 0"):
        choose_layers(model, found_in(model), "norm")
    with pytest.raises(ValueError, match="max_layers is 0"):
        choose_layers(model, found_in(model), None, 0)
