"""The loss of one batch as a function of the weights: known gradients, one function, a model that stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError
from tests.probes.subjects import SUBJECTS, Subject, fingerprint


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]()


def quadratic() -> tuple[nn.Linear, Tensor]:
    """L = (2 w1 + 3 w2)^2 at w = (1, 1)."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    return model, torch.tensor([[2.0, 3.0]], dtype=torch.float64)


def test_value_and_gradient_of_a_quadratic() -> None:
    model, x = quadratic()
    with Objective(model, lambda: model(x).square().sum()) as objective:
        assert objective.value() == 25.0
        assert objective.gradient()[0].tolist() == [[20.0, 30.0]]
        assert objective.names == ("weight",)


def test_moving_the_weights_moves_value_and_gradient() -> None:
    model, x = quadratic()
    with Objective(model, lambda: model(x).square().sum()) as objective:
        with objective.at([torch.tensor([[1.0, 0.0]])]):
            assert objective.value() == 4.0
            assert objective.gradient()[0].tolist() == [[8.0, 12.0]]
        assert objective.value() == 25.0
        objective.set_weights([torch.zeros(1, 2)])
        assert objective.value() == 0.0
    assert model.weight.tolist() == [[1.0, 1.0]]


def test_at_comes_back_from_an_error() -> None:
    model, x = quadratic()
    with Objective(model, lambda: model(x).square().sum()) as objective:
        with pytest.raises(ProbeError, match="nan"), objective.at([torch.full((1, 2), torch.nan)]):
            objective.value()
        assert objective.value() == 25.0


def test_weights_are_a_copy() -> None:
    model, x = quadratic()
    with Objective(model, lambda: model(x).square().sum()) as objective:
        objective.weights()[0].zero_()
        assert objective.value() == 25.0


def test_a_scale_changes_no_gradient() -> None:
    model, x = quadratic()
    with Objective(model, lambda: model(x).square().sum(), grad_scale=1024.0) as objective:
        assert objective.gradient()[0].tolist() == [[20.0, 30.0]]
        assert objective.value() == 25.0


def test_a_scale_saves_the_gradients_of_float16_from_underflow() -> None:
    model = nn.Linear(1, 1, bias=False)

    def loss() -> Tensor:
        y = F.linear(torch.full((1, 1), 2.0**-12, dtype=torch.float16), model.weight.half())
        return (y * 2.0**-14).float().sum()

    def gradient(scale: float) -> float:
        with Objective(model, loss, grad_scale=scale) as objective:
            return objective.gradient()[0].item()

    assert gradient(1.0) == 0.0
    assert gradient(2.0**12) == 2.0**-26


def test_the_gradient_of_what_the_loss_does_not_use_is_zero() -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(2, 2, bias=False)])
    with Objective(model, lambda: model[0](torch.ones(1, 1)).sum()) as objective:
        assert [g.tolist() for g in objective.gradient()] == [[[1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_a_tied_weight_is_one_and_a_frozen_one_is_none() -> None:
    subject = SUBJECTS["transformer"]()
    with Objective(subject.model, subject.loss) as objective:
        assert "embedding.weight" in objective.names
        assert "out.weight" not in objective.names
    frozen = SUBJECTS["frozen"]()
    with Objective(frozen.model, frozen.loss) as objective:
        assert objective.names == ("1.1.weight", "1.1.bias")


def test_it_is_the_same_function_at_every_call(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        values = {objective.value() for _ in range(3)}
        first, second = objective.gradient(), objective.gradient()
        assert len(values) == 1
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_its_gradient_is_the_one_that_training_uses(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        found = objective.gradient()
    subject.model.zero_grad()
    subject.loss().backward()
    used = [p.grad for p in subject.model.parameters() if p.requires_grad]
    assert all(g is not None and torch.equal(f, g) for f, g in zip(found, used, strict=True))


def test_the_model_is_the_same_to_the_bit_afterwards(subject: Subject) -> None:
    before = fingerprint(subject.model, subject.optimizers)
    with Objective(subject.model, subject.loss, optimizers=subject.optimizers) as objective:
        objective.gradient()
        objective.set_weights([2 * w for w in objective.weights()])
        objective.value()
        subject.step()
        subject.model.eval()
    assert fingerprint(subject.model, subject.optimizers) == before


def test_second_derivatives_of_every_subject(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        loss = objective.twice_differentiable_loss()
        gradient = torch.autograd.grad(loss, objective.parameters, create_graph=True)
        product = torch.autograd.grad(sum((g.square().sum() for g in gradient), loss * 0), objective.parameters)
        assert all(bool(p.isfinite().all()) for p in product)


class Attention(nn.Module):
    """Fused attention with dropout, in a checkpoint or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 1)
        self.reentrant = reentrant

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (1, 24)).transpose(1, 2).chunk(3, -1)
        return F.dropout(F.scaled_dot_product_attention(q, k, v), 0.5)

    def loss(self, x: Tensor) -> Tensor:
        y = self.attend(x) if self.reentrant is None else checkpoint(self.attend, x, use_reentrant=self.reentrant)
        loss: Tensor = self.out(y).square().mean()
        return loss


def derivatives(model: Attention, x: Tensor) -> list[Tensor]:
    """First and second."""
    with Objective(model, lambda: model.loss(x)) as objective:
        first = objective.gradient()
        loss = objective.twice_differentiable_loss()
        gradient = torch.autograd.grad(loss, objective.parameters, create_graph=True)
        second = torch.autograd.grad(gradient[0].square().sum(), objective.parameters)
        return [*first, *second]


def test_a_checkpoint_changes_no_derivative_of_first_or_second_order() -> None:
    plain, saving, x = Attention(None), Attention(False), torch.randn(2, 5, 8)
    saving.load_state_dict(plain.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = derivatives(plain, x)
        torch.manual_seed(1)
        found = derivatives(saving, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().sum() > 0


def test_a_reentrant_checkpoint_is_refused_as_it_would_show_gradients_of_zero() -> None:
    model, x = Attention(True), torch.randn(2, 5, 8, requires_grad=True)
    objective = Objective(model, lambda: model.loss(x))
    with objective, pytest.raises(ProbeError, match="use_reentrant=True"):
        objective.gradient()


def test_code_that_torch_compiles_runs_eagerly_and_is_differentiated_twice() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(5, 3)
    compiled = torch.compile(model, backend="eager")
    with Objective(model, lambda: compiled(x).square().mean()) as objective:
        loss = objective.twice_differentiable_loss()
        gradient = torch.autograd.grad(loss, objective.parameters, create_graph=True)
        assert torch.autograd.grad(gradient[0].square().sum(), objective.parameters)[0].abs().sum() > 0


def test_inside_an_autocast_that_stays_open_the_present_weights_are_used() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    x = torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        with Objective(model, lambda: model(x).float().square().sum()) as objective:
            values = []
            for weight in (1.0, 2.0, 3.0):
                objective.set_weights([torch.full((1, 1), weight)])
                values.append((objective.value(), objective.gradient()[0].item()))
        assert values == [(1.0, 2.0), (4.0, 4.0), (9.0, 6.0)]
        assert model(x).item() == 1.0


def test_it_differentiates_under_no_grad() -> None:
    model, x = quadratic()
    with torch.no_grad(), Objective(model, lambda: model(x).square().sum()) as objective:
        assert objective.gradient()[0].tolist() == [[20.0, 30.0]]


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda y: y, r"a tensor of shape \(3, 1\); give a function that returns a scalar"),
        (lambda y: None, "The loss is NoneType"),
        (lambda y: y.detach().sum(), "has no graph"),
        (lambda y: y.sum() / 0, "nothing to differentiate"),
    ],
)
def test_a_loss_that_is_none_is_refused_in_a_sentence(loss: object, sentence: str) -> None:
    model = nn.Linear(1, 1)
    objective = Objective(model, lambda: loss(model(torch.ones(3, 1))))  # type: ignore[operator]
    with objective, pytest.raises(ProbeError, match=sentence):
        objective.value()


def test_a_loss_of_one_element_is_a_scalar() -> None:
    model = nn.Linear(1, 1)
    with Objective(model, lambda: model(torch.ones(1, 1))) as objective:
        assert objective.loss().shape == ()


def test_a_model_without_weights_to_move_is_refused() -> None:
    with pytest.raises(ProbeError, match="No parameter of the model requires a gradient"):
        Objective(nn.Linear(1, 1).requires_grad_(False), lambda: torch.zeros(()))


def test_a_closed_objective_says_how_to_open_it() -> None:
    model, x = quadratic()
    with Objective(model, lambda: model(x).square().sum()) as objective:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        objective.value()
