"""Products against the exact Hessian of the function that is trained, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from ics_apps.probes.hessian import Hessian
from ics_apps.probes.lanczos import extreme_eigenvalues, lanczos, random_starts
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x.reshape(len(x), 2, 4)).chunk(3, -1)
        y: Tensor = self.head(scaled_dot_product_attention(*parts).flatten(1))
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))[:, :3]
        return y


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    net[0].weight.requires_grad_(False)
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    "batch_norm": lambda: nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
    "layer_norm": lambda: nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
    "max_pool": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 3, 3), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 3)
    ),
    "attention": Attention,
    "tied": Tied,
    "frozen": frozen,
}


def subject(name: str, seed: int = 0) -> tuple[nn.Module, Callable[[], Tensor], Tensor, Tensor]:
    """A float64 net, its loss, and the batch."""
    torch.manual_seed(seed)
    net = NETS[name]().double()
    x, y = torch.randn(12, 8, dtype=torch.float64), torch.randint(0, 3, (12,))
    return net, lambda: cross_entropy(net(x), y), x, y


def exact(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By forward over reverse differentiation of a function of one vector, apart from our code."""
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    shapes = [(name, parameter.shape, parameter.numel()) for name, parameter in named.items()]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([size for *_, size in shapes])
        weights = {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        return cross_entropy(functional_call(net, {**weights, **buffers}, (x,), tie_weights=True), y)

    flat = torch.cat([parameter.detach().flatten() for parameter in named.values()])
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-any-return, no-untyped-call]


def dense(hessian: Hessian) -> Tensor:
    """The whole of it, column by column."""
    return torch.stack([hessian.product(e) for e in torch.eye(hessian.size, dtype=hessian.gradient.dtype)], 1)


@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_the_exact_hessian(name: str) -> None:
    net, loss, x, y = subject(name)
    with Objective(net, loss) as objective:
        hessian = Hessian(objective)
        found = dense(hessian)
        gradient = torch.cat([part.flatten() for part in objective.gradient()])
    assert hessian.size == sum(p.numel() for p in net.parameters() if p.requires_grad)
    torch.testing.assert_close(found, exact(net, x, y), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hessian.gradient, gradient)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NETS)
def test_twenty_products_give_the_largest_eigenvalue_to_a_thousandth_and_every_bound_holds(
    name: str, seed: int
) -> None:
    net, loss, _, _ = subject(name, seed)
    with Objective(net, loss) as objective:
        hessian = Hessian(objective)
        true = np.linalg.eigvalsh(dense(hessian).numpy())
        start = next(random_starts(hessian.size, hessian.gradient, seed))
        found = extreme_eigenvalues(hessian.product, start, max_products=20)
        runs = [lanczos(hessian.product, start, products) for products in (1, 2, 5, 10, 40)]
    assert found.products <= 20
    assert found.largest[0].value == pytest.approx(true[-1], rel=1e-3)
    # The reference has rounding of its own.
    slack = len(true) * np.finfo(float).eps * np.abs(true).max()
    for run in runs:
        assert (np.abs(true - run.values[:, None]).min(axis=1) <= run.bounds + slack).all()
    assert abs(found.smallest.value - true[0]) <= 1e-3 * abs(true[0]) or not found.smallest.converged


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_bounds_of_a_float32_net_hold_against_the_float64_hessian(name: str, seed: int) -> None:
    net, _, x, y = subject(name, seed)
    x = x.float()
    net.float()
    with Objective(net, lambda: cross_entropy(net(x), y)) as objective:
        hessian = Hessian(objective)
        start = next(random_starts(hessian.size, hessian.gradient, seed))
        run = lanczos(hessian.product, start, 40, hessian.epsilon)
    net.double()
    with Objective(net, lambda: cross_entropy(net(x.double()), y)) as objective:
        true = np.linalg.eigvalsh(dense(Hessian(objective)).numpy())
    assert (np.abs(true - run.values[:, None]).min(axis=1) <= run.bounds).all()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(5, eps=1e-14), nn.LayerNorm(5, eps=1e-14)])
def test_along_a_scale_invariant_weight_the_hessian_gives_the_gradient_back(norm: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 5, bias=False), norm, nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(12, 8, dtype=torch.float64), torch.randint(0, 3, (12,))
    with Objective(net, lambda: cross_entropy(net(x), y)) as objective:
        hessian = Hessian(objective)
        w = torch.zeros(hessian.size, dtype=torch.float64)
        w[:40] = net[0].weight.detach().flatten()
        along = hessian.product(w)[:40]
    assert hessian.gradient[:40].norm() > 1e-3
    torch.testing.assert_close(along, -hessian.gradient[:40], rtol=1e-8, atol=1e-10)


def test_batch_norm_in_training_is_differentiated_through_its_batch_statistics() -> None:
    net, loss, x, y = subject("batch_norm")
    net[1].running_var.fill_(0.05)  # type: ignore[index]
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with Objective(net, loss) as objective:
        trained = dense(Hessian(objective))
    assert net.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    torch.testing.assert_close(trained, exact(net, x, y), rtol=1e-9, atol=1e-12)
    with Objective(net.eval(), loss) as objective:
        evaluated = dense(Hessian(objective))
    assert torch.linalg.eigvalsh(evaluated)[-1] > 2 * torch.linalg.eigvalsh(trained)[-1]


def test_a_linear_loss_has_a_hessian_of_zero() -> None:
    net = nn.Linear(4, 1)
    with Objective(net, lambda: net(torch.ones(2, 4)).sum()) as objective:
        hessian = Hessian(objective)
        assert not hessian.product(torch.ones(5)).any()
        assert extreme_eigenvalues(hessian.product, torch.ones(5)).largest[0].value == 0


def test_a_weight_that_the_loss_depends_on_linearly_or_not_at_all_has_rows_of_zero() -> None:
    net = nn.ModuleDict({"square": nn.Linear(1, 1, bias=False), "plain": nn.Linear(1, 1)})
    with Objective(net, lambda: net["square"].weight.square().sum() + 3 * net["plain"].bias.sum()) as objective:
        hessian = Hessian(objective)
        assert dense(hessian).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert hessian.gradient.tolist()[1:] == [0, 3]


def test_dropout_is_that_of_one_draw() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)).double()
    x, y = torch.randn(12, 8, dtype=torch.float64), torch.randint(0, 3, (12,))
    with Objective(net, lambda: cross_entropy(net(x), y)) as objective:
        first, second = dense(Hessian(objective)), dense(Hessian(objective))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, first.T)


def test_a_loss_scale_cancels() -> None:
    net, loss, _, _ = subject("tanh")
    v = next(random_starts(68, torch.zeros(1, dtype=torch.float64)))
    with Objective(net, loss) as plain:
        expected = Hessian(plain).product(v[: Hessian(plain).size])
    with Objective(net, loss, grad_scale=1024.0) as scaled:
        assert torch.equal(Hessian(scaled).product(v[: Hessian(scaled).size]), expected)


@pytest.mark.parametrize("name", ["relu", "batch_norm", "attention"])
def test_autocast_gives_the_hessian_to_the_digits_of_bfloat16(name: str) -> None:
    net, _, x, y = subject(name)
    net.float()
    x = x.float()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(net(x), y)

    with Objective(net, loss) as objective:
        hessian = Hessian(objective)
        start = next(random_starts(hessian.size, hessian.gradient))
        run = lanczos(hessian.product, start, 20, hessian.epsilon)
    with Objective(net, lambda: cross_entropy(net(x), y)) as objective:
        true = np.linalg.eigvalsh(dense(Hessian(objective)).numpy())
    assert run.values[-1] == pytest.approx(true[-1], rel=0.05)
    # What the products lack in symmetry shows: the bounds are far above the rounding of float32.
    assert run.bounds.min() > 100 * run.floor


def test_weights_in_bfloat16_are_measured_in_float32_with_their_own_rounding() -> None:
    net, _, x, y = subject("tanh")
    net.bfloat16()
    with Objective(net, lambda: cross_entropy(net(x.bfloat16()).float(), y)) as objective:
        hessian = Hessian(objective)
        assert hessian.product(torch.ones(hessian.size)).dtype == torch.float32
    assert hessian.epsilon == torch.finfo(torch.bfloat16).eps


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    x, y = torch.randn(12, 8), torch.randint(0, 3, (12,))
    cross_entropy(net(x), y).backward()
    before = [tensor.clone() for tensor in (*net.state_dict().values(), *(p.grad for p in net.parameters()))]
    state = torch.get_rng_state()
    with Objective(net, lambda: cross_entropy(net(x), y)) as objective:
        hessian = Hessian(objective)
        extreme_eigenvalues(hessian.product, torch.ones(hessian.size), 5)
    after = [*net.state_dict().values(), *(p.grad for p in net.parameters())]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("then", [torch.sum, lambda y: y.square().sum()])
def test_what_is_marked_as_once_differentiable_is_refused(then: Callable[[Tensor], Tensor]) -> None:
    # For torch.autograd.grad its second derivative is 0, without a word.
    net = nn.Linear(3, 1)
    with (
        Objective(net, lambda: then(Once.apply(net(torch.ones(2, 3))))) as objective,
        pytest.raises(
            ProbeError, match=r"cannot be differentiated twice: .* once differentiable; give a loss of plain"
        ),
    ):
        Hessian(objective)


def test_an_operation_without_a_second_derivative_is_named() -> None:
    net = nn.Linear(4, 4)

    def loss() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            y = net(torch.ones(1, 1, 2, 4))
            return scaled_dot_product_attention(y, y, y).sum()

    with Objective(net, loss) as objective:
        hessian = Hessian(objective)
        with pytest.raises(ProbeError, match=r"cannot be differentiated twice: .*flash_attention.*not implemented; "):
            hessian.product(torch.ones(20))


def test_products_that_overflow_are_refused() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1e-5)
    with Objective(net, lambda: net(torch.full((1, 1), 2e19)).square().sum()) as objective:
        hessian = Hessian(objective)
        with pytest.raises(ProbeError, match="not finite"):
            lanczos(hessian.product, torch.full((1,), math.pi), 3)
