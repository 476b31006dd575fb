"""What taps hand over inside compiled graphs, and how a model compiled without them is told."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from ics_apps.probes.activations.compiled import compiled_before, silent_layers
from ics_apps.probes.activations.taps import Tap
from ics_apps.probes.selection import select_layers

BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


class Listening:
    """A sink that keeps copies of what it is given."""

    def __init__(self) -> None:
        self.open = False
        self.seen: list[tuple[str, str, list[Tensor]]] = []
        self.gradients: dict[int, list[Tensor]] = {}

    @property
    def outputs(self) -> list[str]:
        return [name for what, name, _ in self.seen if what == "after"]

    def before(self, tap: Tap, x: Tensor | None, statistics: tuple[Tensor, ...]) -> None:
        found = [*statistics] if x is None else [x, *statistics]
        self.seen.append(("before", tap.layer.name, [tensor.clone().double() for tensor in found]))

    def after(self, tap: Tap, x: Tensor, statistics: tuple[Tensor, ...]) -> int | None:
        ticket = len(self.seen)
        self.seen.append(("after", tap.layer.name, [tensor.clone().double() for tensor in (x, *statistics)]))
        return ticket

    def gradient(self, ticket: int, gradient: Tensor) -> None:
        self.gradients.setdefault(ticket, []).append(gradient.clone().double())


class Net(nn.Module):
    """A batch norm, an activation in place that is used twice, one judged on its input, and a dictionary to return."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.fc, self.gelu, self.out = nn.Linear(4, 5), nn.GELU(), Head()

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.act(self.norm(self.act(self.conv(x))))
        result: dict[str, Any] = self.out(self.gelu(self.fc(x.mean((2, 3)))))
        return result


class Head(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"classes": 2, "logits": super().forward(x)}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.act(self.fc(x))
        return y


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(checkpoint(self.block, x, use_reentrant=False))
        return y


@pytest.fixture(autouse=True)
def _nothing_compiled_stays() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def watch(model: nn.Module) -> Listening:
    sink = Listening()
    for index, layer in enumerate(select_layers(model).chosen):
        Tap(layer, index, sink).attach(wants_input=layer.kind == "activation", wants_gradient=True)
    return sink


def train(model: nn.Module, run: Any, sink: Listening, x: Tensor) -> dict[str, Any]:
    """Six steps, of which every second one is sampled."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        sink.open = step % 2 == 1
        optimizer.zero_grad()
        result = run(x + step)
        (result if isinstance(result, Tensor) else result["logits"]).square().mean().backward()
        optimizer.step()
    sink.open = False
    return model.state_dict()


def compiled(model: nn.Module, backend: str = "eager") -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, fullgraph=True), counter


def assert_heard_the_same(sink: Listening, eager: Listening, tolerance: float) -> None:
    assert [row[:2] for row in sink.seen] == [row[:2] for row in eager.seen]
    for (_, _, found), (_, _, expected) in zip(sink.seen, eager.seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for ticket, gradients in sink.gradients.items():
        torch.testing.assert_close(gradients, eager.gradients[ticket], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_open_and_closed_are_one_graph_each_however_often_they_alternate(backend: str) -> None:
    model = Net()
    sink = watch(model)
    run, counter = compiled(model, backend)
    train(model, run, sink, torch.randn(4, 3, 8, 8))
    assert counter.frame_count == 2
    assert len(sink.outputs) == 3 * 7


def test_a_closed_sink_leaves_no_trace_in_the_graph() -> None:
    model = Net()
    sink = watch(model)
    run, counter = compiled(model)
    run(torch.randn(4, 3, 8, 8))
    sink.open = True
    run(torch.randn(4, 3, 8, 8))
    assert ["ics_apps" in graph.print_readable(print_output=False) for graph in counter.graphs] == [False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_hands_over_what_the_plain_one_does(backend: str) -> None:
    torch.manual_seed(0)
    plain, x = Net(), torch.randn(4, 3, 8, 8)
    model = copy.deepcopy(plain)
    eager, sink = watch(plain), watch(model)
    train(plain, plain, eager, x)
    train(model, compiled(model, backend)[0], sink, x)
    # Inductor adds in another order, which training then makes larger.
    assert_heard_the_same(sink, eager, 1e-5 if backend == "inductor" else 0.0)
    # All but the head, whose output is no tensor.
    assert len(sink.gradients) == 3 * 6


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_training_a_compiled_model_is_the_same_to_the_bit_with_and_without_taps(backend: str) -> None:
    torch.manual_seed(0)
    plain, x = Net(), torch.randn(4, 3, 8, 8)
    model = copy.deepcopy(plain)
    expected = train(plain, compiled(plain, backend)[0], Listening(), x)
    torch.compiler.reset()
    found = train(model, compiled(model, backend)[0], watch(model), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_checkpointed_region_is_handed_over_once_with_its_gradients(backend: str) -> None:
    torch.manual_seed(0)
    plain, x = Checkpointed(), torch.randn(4, 4)
    model = copy.deepcopy(plain)
    eager, sink = watch(plain), watch(model)
    for module in (plain, model):
        module.block[1].momentum = 0.0  # eager checkpointing moves the statistics twice
    train(plain, plain, eager, x)
    train(model, compiled(model, backend)[0], sink, x)
    assert len(sink.gradients) == 3 * 5
    assert_heard_the_same(sink, eager, 1e-5 if backend == "inductor" else 0.0)


# Dynamo itself looks at .grad of each input, here of outputs of the block before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_blocks_of_one_class_compiled_one_by_one_share_their_graphs() -> None:
    model, counter = nn.Sequential(*[Block() for _ in range(12)]), CompileCounterWithBackend("eager")
    sink = watch(model)
    for block in model:
        block.compile(backend=counter, fullgraph=True)
    train(model, model, sink, torch.randn(4, 4))
    assert len(sink.outputs) == 3 * 12 * 2
    # The input of the first block needs no gradient, which is another graph: each open and closed.
    assert counter.frame_count <= 4


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_model_knows_nothing_of_its_taps(strict: bool) -> None:
    model = Net()
    sink = watch(model)
    sink.open = True
    program = torch.export.export(model, (torch.randn(4, 3, 8, 8),), strict=strict)
    assert "ics_apps" not in str(program.graph)
    assert sink.seen == []


def test_a_traced_model_runs_without_its_taps() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    sink = watch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        traced = torch.jit.trace(model, torch.ones(1, 2))
    sink.open = True
    traced(torch.ones(1, 2))
    assert sink.seen == []


@pytest.mark.parametrize("same_instance", [True, False])
def test_taps_put_on_after_compilation_are_told_and_a_reset_brings_them_in(same_instance: bool) -> None:
    x, counter = torch.randn(4, 4), CompileCounterWithBackend("eager")
    model = nn.Sequential(Checkpointed())
    model[0].compile(backend=counter)
    model(x)
    if not same_instance:
        model = nn.Sequential(Checkpointed())
        model[0].compile(backend=counter)
    sink = watch(model)
    late, layers = compiled_before(model), select_layers(model).chosen
    assert late == ["0"]
    sink.open = True
    model(x)
    assert silent_layers(layers, sink.outputs, late) == [layer.name for layer in layers]
    torch.compiler.reset()
    assert compiled_before(model) == []
    model(x)
    assert silent_layers(layers, sink.outputs, late) == []


@pytest.mark.parametrize("how", ["torch.compile", "method", "torch.compile of torch's own class"])
def test_parts_are_compiled_before_only_when_they_have_run(how: str) -> None:
    part: Any = nn.Sequential(nn.Linear(4, 4)) if "own" in how else Checkpointed()
    if how == "method":
        part.forward = torch.compile(part.forward, backend="eager")
    else:
        part = torch.compile(part, backend="eager")
    model = nn.ModuleDict({"net": part, "head": nn.Linear(4, 4)})
    assert compiled_before(model) == []
    part(torch.randn(4, 4))
    assert compiled_before(model) == ["net"]


def test_code_compiled_with_taps_is_not_late() -> None:
    model = Net()
    sink = watch(model)
    run, _ = compiled(model)
    train(model, run, sink, torch.randn(4, 3, 8, 8))
    assert compiled_before(nn.ModuleList([run])) == []


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_transforms_of_functions_are_not_disturbed_and_not_read(transform: str) -> None:
    model = Block()
    sink = watch(model)
    sink.open = True
    parameters = dict(model.named_parameters())

    def total(x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(model, parameters, (x,)).sum()
        return y

    function = getattr(torch.func, transform)(total)
    run = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(torch.ones(3, 4)), function(torch.ones(3, 4)))
    assert sink.seen == []
