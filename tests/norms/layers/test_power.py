"""Power norm: what divides in each phase, and the backward pass of its authors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ics_apps.norms import NormError, make_norm

EPS = 1e-5
AXES = (0, 2, 3)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.7


def build(**options):
    norm = make_norm({"name": "power_norm", "warmup_steps": 0, **options}, 3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-0.3, 0.1, 0.4]))
    norm.running_square.copy_(torch.tensor([1.5, 2.0, 4.0]))
    return norm


def by_channel(vector):
    return vector[:, None, None]


def affine(z, norm):
    return z * by_channel(norm.weight) + by_channel(norm.bias)


def same(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=1e-12)


def test_after_the_warm_up_the_running_square_from_before_the_step_divides():
    x, norm = draw(4, 3, 2, 3), build()
    square = norm.running_square.clone()
    same(norm(x), affine(x / by_channel((square + EPS).sqrt()), norm))
    same(norm.running_square, 0.9 * square + 0.1 * x.square().mean(AXES))


def test_in_the_warm_up_the_batches_own_square_divides_and_gradients_are_true():
    x, norm = draw(4, 3, 2, 3).requires_grad_(), build(warmup_steps=2)
    same(norm(x), affine(x / by_channel((x.square().mean(AXES) + EPS).sqrt()), norm))
    assert torch.autograd.gradcheck(lambda x: copy.deepcopy(norm)(x), x)
    assert norm.running_gradient.tolist() == [0, 0, 0]


def test_the_warm_up_ends_after_its_number_of_training_batches():
    x, norm = draw(4, 3, 2, 3), build(warmup_steps=2)
    by_batch = affine(x / by_channel((x.square().mean(AXES) + EPS).sqrt()), norm)
    assert [torch.allclose(norm(x), by_batch) for _ in range(3)] == [True, True, False]


def test_evaluation_divides_by_the_running_square_and_moves_nothing():
    x, norm = draw(4, 3, 2, 3), build(warmup_steps=100).eval()
    start = copy.deepcopy(norm.state_dict())
    same(norm(x), affine(x / by_channel((norm.running_square + EPS).sqrt()), norm))
    assert all(torch.equal(value, start[name]) for name, value in norm.state_dict().items())


def test_two_steps_of_the_backward_pass_follow_the_formula():
    norm = build(momentum=0.2, backward_momentum=0.3)
    square, nu = norm.running_square.numpy().copy(), np.zeros(3)
    weight = norm.weight.detach().numpy()[:, None, None]
    for step in range(2):
        x, g = draw(4, 3, 2, 3, seed=step).requires_grad_(), draw(4, 3, 2, 3, seed=step + 5)
        norm.zero_grad()
        norm(x).backward(g)
        array, gradient = x.detach().numpy(), g.numpy()
        z = array / np.sqrt(square + EPS)[:, None, None]
        corrected = gradient * weight - 0.3 * nu[:, None, None] * z
        of_batch = (array**2).mean(AXES)
        same(x.grad, corrected / np.sqrt(of_batch + EPS)[:, None, None])
        same(norm.weight.grad, (gradient * z).sum(AXES))
        same(norm.bias.grad, gradient.sum(AXES))
        nu = nu + (corrected * z).mean(AXES)
        square = 0.8 * square + 0.2 * of_batch
        same(norm.running_gradient, nu)
        same(norm.running_square, square)
    assert np.abs(nu).min() > 1e-3


def test_after_the_warm_up_gradcheck_fails_by_design():
    x, norm = draw(4, 3, 2, 3).requires_grad_(), build()
    assert not torch.autograd.gradcheck(lambda x: copy.deepcopy(norm)(x), x, raise_exception=False)


def test_a_second_derivative_through_the_authors_backward_pass_is_refused():
    x, norm = draw(4, 3, 2, 3).requires_grad_(), build()
    (slope,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("option", [{"momentum": 1.5}, {"backward_momentum": -0.1}])
def test_momenta_that_are_no_weights_are_refused(option):
    with pytest.raises(NormError, match=r"weight of the new batch and lies in \[0, 1\]"):
        make_norm({"name": "power_norm", **option}, 3)
