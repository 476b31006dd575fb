"""Multiplying and adding per-channel tables, and the rules that serve such formulas their first gradient."""

from __future__ import annotations

import pytest
import torch

from ics_apps.norms.engine.own_gradient import Rule, by_rule, is_watched
from ics_apps.norms.engine.scaling import broadcast, scaled

SHAPES = {0: (3, 4), 1: (3, 4, 5), 2: (3, 4, 2, 3), 3: (2, 4, 2, 2, 2), "tokens": (3, 5, 4)}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(kind, dim):
    shape = {"channel": (4,), "sample": (SHAPES[dim][0], 4), "tensor": (1,)}[kind]
    return draw(*shape, seed=1).requires_grad_(), draw(*shape, seed=2).requires_grad_()


every_table = pytest.mark.parametrize("kind", ["channel", "sample", "tensor"])
every_dim = pytest.mark.parametrize("dim", list(SHAPES))


@every_table
@every_dim
def test_each_value_meets_the_entry_of_its_sample_and_channel(kind, dim):
    x, (scale, shift) = draw(*SHAPES[dim]), tables(kind, dim)
    y = scaled(x, dim, scale, shift)
    last = (x.movedim(1, -1), y.movedim(1, -1)) if dim != "tokens" else (x, y)
    for sample in range(len(x)):
        own = [t[sample] if kind == "sample" else t for t in (scale, shift)]
        assert torch.equal(last[1][sample], last[0][sample] * own[0] + own[1])


@every_table
@every_dim
def test_two_derivatives_are_right(kind, dim):
    inputs = (draw(*SHAPES[dim]).requires_grad_(), *tables(kind, dim))
    function = lambda x, scale, shift: scaled(x, dim, scale, shift)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_table
def test_two_derivatives_are_right_in_channels_last_and_the_layout_stays(kind):
    x = draw(*SHAPES[2]).to(memory_format=torch.channels_last).requires_grad_()
    inputs = (x, *tables(kind, 2))
    function = lambda x, scale, shift: scaled(x, 2, scale, shift)  # noqa: E731
    assert function(*inputs).is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone_is_that_of_all_three(wanted):
    inputs = [draw(*SHAPES[2]), *(t.detach() for t in tables("channel", 2))]
    inputs[wanted].requires_grad_()
    (alone,) = torch.autograd.grad(scaled(inputs[0], 2, *inputs[1:]).sin().sum(), inputs[wanted])
    every = [t.detach().requires_grad_() for t in inputs]
    assert torch.equal(alone, torch.autograd.grad(scaled(every[0], 2, *every[1:]).sin().sum(), every)[wanted])


@every_table
@pytest.mark.parametrize("dim", [0, 2, "tokens"])
def test_compiled_it_is_the_same_in_value_and_gradient(kind, dim):
    x, (scale, shift) = draw(*SHAPES[dim]).requires_grad_(), tables(kind, dim)
    function = lambda x, scale, shift: scaled(x, dim, scale, shift)  # noqa: E731
    torch.compiler.reset()  # or the next of these cases would count as compiling one function too often
    results = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        y = call(x, scale, shift)
        results.append([y, *torch.autograd.grad(y.sin().sum(), (x, scale, shift))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-12)


def test_half_precision_comes_back_as_it_went_in():
    y = scaled(draw(*SHAPES[2]).bfloat16(), 2, *(t.float() for t in tables("channel", 2)))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(("dim", "shape"), [(0, (1, 4)), (2, (1, 4, 1, 1)), ("tokens", (1, 1, 4))])
def test_a_vector_meets_the_channels_of_the_input(dim, shape):
    assert broadcast(torch.ones(4), dim).shape == shape


def cube():
    """x^3, with marks of what was asked: a first gradient that is recognisably the rule's own."""
    own = lambda gradient, inputs, kept, wanted: (gradient * kept[0],)  # noqa: E731
    return Rule(lambda x: x**3, lambda x: (x**3, (torch.full_like(x, 100.0),)), own)


def test_the_first_gradient_is_the_rules_and_one_to_be_differentiated_the_formulas():
    x = torch.tensor([2.0], requires_grad=True)
    assert torch.autograd.grad(by_rule(cube(), x), x)[0].tolist() == [100]
    (slope,) = torch.autograd.grad(by_rule(cube(), x), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    assert (slope.tolist(), curvature.tolist()) == ([12], [12])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("watch", ["grad", "vmap", "jvp"])
def test_who_watches_the_operations_sees_the_formula(watch):
    x, seen = torch.tensor([2.0]), []

    def function(x):
        seen.append(is_watched())
        return by_rule(cube(), x).sum()

    if watch == "grad":
        assert torch.func.grad(function)(x).tolist() == [12]
    elif watch == "vmap":
        assert torch.func.vmap(function)(x[None]).tolist() == [8]
    else:
        assert torch.func.jvp(function, (x,), (torch.ones(1),))[1].item() == 12
    assert seen == [True]
    assert not is_watched()


def test_a_rule_is_not_asked_about_nothing():
    x = torch.zeros(0, requires_grad=True)
    rule = Rule(lambda x: x**3, lambda x: pytest.fail("asked"), lambda *_: pytest.fail("asked"))
    assert torch.autograd.grad(by_rule(rule, x).sum(), x)[0].shape == (0,)
