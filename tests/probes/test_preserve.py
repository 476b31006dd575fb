"""What a forward pass can move in a model, put back."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryPrecision, BinaryRecall

from ics_apps.probes.preserve import ProbeError, Surroundings, Weights, preserved
from tests.probes.subjects import SUBJECTS, Subject, fingerprint


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]()


def test_training_steps_inside_leave_no_trace(subject: Subject) -> None:
    before = fingerprint(subject.model, subject.optimizers)
    with preserved(subject.model, subject.optimizers):
        subject.step()
        subject.model.eval()
        subject.step()
        assert fingerprint(subject.model, subject.optimizers) != before
    assert fingerprint(subject.model, subject.optimizers) == before


def test_an_error_inside_leaves_no_trace(subject: Subject) -> None:
    before = fingerprint(subject.model, subject.optimizers)

    def fail() -> None:
        with preserved(subject.model, subject.optimizers):
            subject.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert fingerprint(subject.model, subject.optimizers) == before


def test_the_surroundings_may_be_restored_many_times(subject: Subject) -> None:
    surroundings = Surroundings(subject.model)
    with torch.no_grad():
        losses = []
        for _ in range(3):
            surroundings.restore()
            losses.append(subject.loss().item())
    assert losses[0] == losses[1] == losses[2]


def test_the_surroundings_leave_the_weights_where_they_are(subject: Subject) -> None:
    surroundings = Surroundings(subject.model)
    subject.step()
    moved = [parameter.detach().clone() for parameter in subject.model.parameters()]
    surroundings.restore()
    assert all(torch.equal(a, b) for a, b in zip(subject.model.parameters(), moved, strict=True))


def test_a_graph_from_before_a_restore_still_has_its_gradient() -> None:
    subject = SUBJECTS["gan"]()
    surroundings, parameters = Surroundings(subject.model), list(subject.model.parameters())
    expected = torch.autograd.grad(subject.loss(), parameters)
    surroundings.restore()
    loss = subject.loss()
    surroundings.restore()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, parameters), expected, strict=True))


def test_no_gradient_is_not_a_gradient_of_zero() -> None:
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = None, torch.zeros(1)
    zeros = model.bias.grad
    with preserved(model):
        model(torch.ones(1, 2)).backward()
    assert model.weight.grad is None
    assert model.bias.grad is zeros
    assert zeros.item() == 0


def test_a_sparse_gradient_comes_back() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    before = model.weight.grad
    assert before is not None
    with preserved(model):
        model(torch.tensor([1, 3])).sum().backward()
    assert model.weight.grad is before
    assert before.to_dense().sum(1).tolist() == [0, 2, 0, 0, 0]


def test_what_requires_a_gradient_comes_back() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    with preserved(model):
        model.requires_grad_(True).weight.requires_grad_(False)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)


def _optimizers() -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    return {
        "adam": lambda p: torch.optim.Adam(p, 0.1),
        "tensor_lr": lambda p: torch.optim.Adam(p, torch.tensor(0.1), capturable=False),
        "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=2),
        "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    }


@pytest.mark.parametrize("make", _optimizers().values(), ids=_optimizers())
@pytest.mark.parametrize("steps", [0, 2])
def test_the_states_and_options_of_optimizers_come_back(
    make: Callable[[Any], torch.optim.Optimizer], steps: int
) -> None:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    optimizer = make(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    before, groups = fingerprint(model, [optimizer]), optimizer.param_groups[0]
    with preserved(model, [optimizer]):
        for _ in range(3):
            optimizer.step(closure)  # type: ignore[arg-type]
        groups["lr"] = 5.0
    assert fingerprint(model, [optimizer]) == before
    assert optimizer.param_groups[0] is groups


class Strange(nn.Module):
    """State of every kind outside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("unset", None)
        self.plain = torch.zeros(2)
        self.count = 0
        self.listed: list[Any] = [torch.zeros(2), [1]]
        self.named = OrderedDict(a=torch.zeros(2), b={"c": 1})
        self.last: deque[int] = deque([1, 2], maxlen=2)
        self.seen = {1, 2}
        self.pair = (torch.zeros(2), [0])
        self.python = random.Random(0)  # noqa: S311 - no cryptography
        self.numpy = np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)
        # Not registered, as a teacher often is.
        self.teacher = [nn.Sequential(nn.BatchNorm1d(2))]

    def forward(self, x: Tensor) -> Tensor:
        self.hidden += 1
        self.unset = x.detach()
        self.plain = self.plain + 1
        self.count += 1
        self.listed[0] += 1
        self.listed[1].append(2)
        self.listed.append(3)
        self.named["a"] += 1
        self.named["b"]["c"] = 2
        self.named["d"] = 0
        self.last.append(3)
        self.seen ^= {2, 3}
        self.pair[0].add_(1)
        self.pair[1].append(1)
        if not hasattr(self, "made"):
            self.made = nn.Linear(2, 2)
            self.fresh = 1.0
        self.made.weight.data += 1
        self.register_buffer("later", torch.ones(1))
        self.teacher[0](x)
        noise = self.python.random() + self.numpy.normal() + torch.rand(1, generator=self.torch)
        y: Tensor = self.made(self.linear(x)) + noise + self.plain
        return y


def state_of(model: Strange) -> Any:
    bits = fingerprint(model)
    teacher = fingerprint(model.teacher[0])
    others = (list(model.listed[1]), list(model.last), sorted(model.seen), list(model.named), str(model.named["b"]))
    return bits, teacher, others, model.python.getstate(), sorted(vars(model)), sorted(model._buffers)


def test_state_in_attributes_comes_back_whatever_holds_it() -> None:
    model = Strange()
    before, plain, listed = state_of(model), model.plain, model.listed
    surroundings = Surroundings(model)
    first = model(torch.ones(3, 2))
    surroundings.restore()
    assert state_of(model) == before
    assert model.plain is plain
    assert model.listed is listed
    assert torch.equal(model(torch.ones(3, 2)), first)


def test_a_forward_that_another_has_patched_stays_patched() -> None:
    model = nn.Linear(1, 1)
    surroundings = Surroundings(model)
    model.forward = lambda _: 1  # type: ignore[assignment, method-assign]
    handle = model.register_forward_hook(lambda *_: 2)
    surroundings.restore()
    assert model(torch.ones(1)) == 2
    handle.remove()
    assert model(torch.ones(1)) == 1


def test_a_tensor_that_shares_the_memory_of_a_parameter_follows_the_parameter() -> None:
    model = nn.LSTM(2, 2)
    model.register_buffer("view", model.weight_ih_l0.data[0])
    model.plain = model.weight_hh_l0.detach()  # type: ignore[assignment]
    surroundings = Surroundings(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    surroundings.restore()
    assert all(bool((parameter == 7).all()) for parameter in model.parameters())
    assert model.view.tolist() == [7.0, 7.0]  # type: ignore[operator, union-attr]


def test_metrics_that_share_their_states_go_on_sharing_them() -> None:
    metrics = MetricCollection([BinaryPrecision(), BinaryRecall()])
    y, target = torch.tensor([0.2, 0.9, 0.7]), torch.tensor([0, 1, 0])
    metrics.update(y, target)
    expected = {name: value.item() for name, value in metrics.compute().items()}
    with preserved(metrics):
        metrics.update(1 - y, target)
        metrics.compute()
        metrics.reset()
    assert {name: value.item() for name, value in metrics.compute().items()} == expected
    metrics.update(y, target)
    assert {name: value.item() for name, value in metrics.compute().items()} == expected
    assert metrics["BinaryRecall"].tp.item() == 2  # type: ignore[union-attr, operator]


def test_a_metric_from_an_evaluation_in_inference_mode_comes_back() -> None:
    metric = BinaryPrecision()
    with torch.inference_mode():
        metric.update(torch.tensor([0.9, 0.9]), torch.tensor([1, 0]))
    assert metric.tp.is_inference()
    with preserved(metric):
        metric.reset()
    assert metric.compute().item() == 0.5


def test_buffers_that_cannot_be_written_in_place_are_no_obstacle() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("wide", torch.ones(1).expand(5))
    with preserved(model):
        model.wide = torch.zeros(5)
    assert model.wide.tolist() == [1.0] * 5


def test_a_lazy_layer_is_refused_in_a_sentence() -> None:
    with pytest.raises(ProbeError, match="lazy layers without a shape yet: run it on a batch"):
        Surroundings(nn.Sequential(nn.LazyLinear(2)))


def test_weights_that_autocast_has_cast_are_cast_anew() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(1, 1))
        with preserved(model):
            model.weight.data.fill_(2.0)
            Surroundings(model).restore()
            assert model(torch.ones(1, 1)).item() == 2.0
        assert model(torch.ones(1, 1)).item() == 1.0


def test_weights_are_put_back_behind_autograds_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    weights, x = Weights(model), torch.ones(1, 1)
    loss = model(x).square().sum()
    weights.restore()
    loss.backward()
    assert model.weight.grad is not None
