"""What the hooks hand over, and what they leave behind."""

from __future__ import annotations

import copy
import io
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ics_apps.probes.activations.taps import Tap
from ics_apps.probes.selection import Layer, kind_of, select_layers


class Listening:
    """A sink that keeps copies of what it is given."""

    def __init__(self) -> None:
        self.open = False
        self.inputs: list[tuple[str, Tensor | None, list[Tensor]]] = []
        self.outputs: list[tuple[str, Tensor, list[Tensor]]] = []
        self.gradients: dict[int, list[Tensor]] = {}

    def before(self, tap: Tap, x: Tensor | None, statistics: tuple[Tensor, ...]) -> None:
        self.inputs.append((tap.layer.name, None if x is None else x.clone(), [s.clone() for s in statistics]))

    def after(self, tap: Tap, x: Tensor, statistics: tuple[Tensor, ...]) -> int | None:
        self.outputs.append((tap.layer.name, x.clone(), [s.clone() for s in statistics]))
        return len(self.outputs) - 1

    def gradient(self, ticket: int, gradient: Tensor) -> None:
        self.gradients.setdefault(ticket, []).append(gradient.clone())


def watch(module: nn.Module, wants_input: bool = False, wants_gradient: bool = True) -> Listening:
    sink = Listening()
    Tap(Layer(("0",), kind_of(module) or "stream", module), 0, sink).attach(wants_input, wants_gradient)
    sink.open = True
    return sink


def test_a_tap_passes_on_only_while_its_sink_is_open() -> None:
    module = nn.Linear(1, 1)
    sink = watch(module, wants_input=True)
    module(torch.ones(1))
    sink.open = False
    module(torch.ones(1))
    assert (len(sink.inputs), len(sink.outputs)) == (1, 1)


def test_inputs_given_by_name_count() -> None:
    module = nn.Linear(1, 1)
    sink = watch(module, wants_input=True)
    module(input=torch.tensor([3.0]))
    assert [x for _, x, _ in sink.inputs] == [torch.tensor([3.0])]


def test_running_statistics_are_handed_over_as_they_were_before_and_after() -> None:
    norm = nn.BatchNorm1d(1, momentum=0.5)
    sink = watch(norm)
    norm(torch.tensor([[1.0], [3.0]]))
    assert [float(s) for s in sink.inputs[0][2]] == [0.0, 1.0]
    assert [float(s) for s in sink.outputs[0][2]] == [1.0, 1.5]


def test_a_plain_average_over_batches_comes_with_their_number() -> None:
    norm = nn.BatchNorm1d(1, momentum=None)
    sink = watch(norm)
    norm(torch.tensor([[1.0], [3.0]]))
    assert [int(s[2]) for s in (sink.inputs[0][2], sink.outputs[0][2])] == [0, 1]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(1).eval(), nn.BatchNorm1d(1, track_running_stats=False)])
def test_a_norm_that_moves_no_statistics_hands_none_over(norm: nn.Module) -> None:
    sink = watch(norm)
    norm(torch.tensor([[1.0], [3.0]]))
    assert (sink.inputs[0][2], sink.outputs[0][2]) == ([], [])


def test_a_lazy_norm_is_handed_over_from_its_first_forward() -> None:
    norm = nn.LazyBatchNorm1d()
    sink = Listening()
    Tap(Layer(("0",), "norm", norm), 0, sink).attach(wants_input=False, wants_gradient=False)
    sink.open = True
    norm(torch.tensor([[1.0], [3.0]]))
    assert len(sink.inputs[0][2]) == len(sink.outputs[0][2]) == 2


def test_a_module_without_a_readable_tensor_hands_nothing_over() -> None:
    module = nn.Identity()
    sink = watch(module, wants_input=True)
    module(torch.arange(3))
    assert sink.inputs == sink.outputs == []


def test_the_gradient_is_that_of_the_output_before_an_in_place_operation() -> None:
    module, x = nn.Linear(2, 2), torch.randn(3, 2)
    sink = watch(module)
    module(x).relu_().square().sum().backward()
    output = sink.outputs[0][1]
    torch.testing.assert_close(sink.gradients[0][0], 2 * output.clamp_min(0))


def test_a_second_backward_and_a_gradient_of_a_gradient_hand_over_again() -> None:
    module, x = nn.Linear(1, 1), torch.ones(1, 1, requires_grad=True)
    sink = watch(module)
    y = module(x).square().sum()
    y.backward(retain_graph=True)
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    slope.square().sum().backward()
    assert len(sink.gradients[0]) == 3


def test_no_gradient_is_handed_over_where_none_is_wanted_or_computed() -> None:
    module = nn.Linear(1, 1)
    unwanted = watch(module, wants_gradient=False)
    module(torch.ones(1)).sum().backward()
    with torch.no_grad():
        computed = watch(module)
        module(torch.ones(1))
    assert unwanted.gradients == computed.gradients == {}


def test_no_hook_stays_on_a_parameter_that_passes_through_a_layer() -> None:
    module, embedding = nn.Identity(), nn.Parameter(torch.ones(1))
    sink = watch(module)
    module(embedding).sum().backward()
    assert len(sink.outputs) == 1
    assert not embedding._backward_hooks


def test_a_tap_keeps_no_graph_alive() -> None:
    module = nn.Linear(1, 1)
    outputs: list[weakref.ref[Tensor]] = []
    watch(module)
    module.register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    module(torch.ones(1)).exp()
    assert outputs[0]() is None


def test_removing_the_handles_leaves_nothing() -> None:
    module, sink = nn.BatchNorm1d(1), Listening()
    handles = Tap(Layer(("0",), "norm", module), 0, sink).attach(wants_input=True, wants_gradient=True)
    for handle in handles:
        handle.remove()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("how", ["deepcopy", "file", "shallow"])
def test_a_copy_of_a_watched_model_never_reports(how: str) -> None:
    module = nn.Linear(1, 1)
    sink = watch(module, wants_input=True)
    if how == "file":
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(module) if how == "deepcopy" else copy.copy(module)
    twin(torch.ones(1))
    assert sink.inputs == sink.outputs == []
    module(torch.ones(1))
    assert (len(sink.inputs), len(sink.outputs)) == (1, 1)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_hands_over_one_output_and_its_gradient(use_reentrant: bool) -> None:
    module = nn.Linear(2, 2)
    sink = watch(module)
    for _ in range(2):
        x = torch.ones(1, 2, requires_grad=True)
        checkpoint(module, x, use_reentrant=use_reentrant).sum().backward()
    assert len(sink.outputs) == 2
    assert {ticket: len(found) for ticket, found in sink.gradients.items()} == {0: 1, 1: 1}


def test_two_reentrant_forwards_of_one_layer_get_no_gradient_rather_than_a_wrong_one() -> None:
    module, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    sink = watch(module)
    checkpoint(module, checkpoint(module, x, use_reentrant=True), use_reentrant=True).sum().backward()
    assert len(sink.outputs) == 2
    assert sink.gradients == {}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 1))


def trained(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 6, 6)).square().mean().backward()
        optimizer.step()
    return {**model.state_dict(), "random": torch.get_rng_state()}


def test_training_is_the_same_to_the_bit_with_and_without_taps() -> None:
    watched, sink = net(), Listening()
    for index, layer in enumerate(select_layers(watched).chosen):
        Tap(layer, index, sink).attach(wants_input=True, wants_gradient=True)
    sink.open = True
    torch.testing.assert_close(trained(watched), trained(net()), rtol=0, atol=0)
    assert len(sink.outputs) == len(sink.gradients) == 16
