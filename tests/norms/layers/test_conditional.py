"""Norms whose scale and shift come from a label or a style."""

from __future__ import annotations

import pytest
import torch

from ics_apps.norms import NormError, make_norm, norm_context
from ics_apps.norms.engine.axes import space_axes

# A conditional norm, the norm that it is at its start, and where.
PAIRS = [
    ("conditional_batch", {}, "batch", 2),
    ("conditional_batch", {}, "batch", "tokens"),
    ("conditional_instance", {}, "instance", 2),
    ("conditional_group", {"num_groups": 2}, "group", 2),
    ("conditional_layer", {}, "layer", "tokens"),
    ("conditional_layer", {}, "layer", 0),
]
SHAPES = {0: (3, 4), 2: (3, 4, 3, 2), "tokens": (3, 5, 4)}
LABELS = torch.tensor([2, 0, 2])


def draw(dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPES[dim], generator=generator, dtype=torch.float64) * 2 + 0.7


def pair(name, options, plain, dim, **more):
    norm = make_norm({"name": name, "num_classes": 3, **options, **more}, 4, dim).double()
    return norm, make_norm({"name": plain, **options}, 4, dim).double()


def rows(table, dim):
    return table[:, None] if dim == "tokens" else table.reshape(*table.shape, *(1,) * dim)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


every_pair = pytest.mark.parametrize(("name", "options", "plain", "dim"), PAIRS)


@every_pair
@pytest.mark.parametrize("label_features", [0, 5])
def test_at_the_start_every_label_gives_the_unconditional_norm(name, options, plain, dim, label_features):
    norm, unconditional = pair(name, options, plain, dim, label_features=label_features)
    label = torch.randn(3, label_features) if label_features else LABELS
    same(norm(draw(dim), label), unconditional(draw(dim)))
    same(norm.eval()(draw(dim), label), unconditional.eval()(draw(dim)))


@every_pair
def test_each_sample_takes_the_row_of_its_label(name, options, plain, dim):
    norm, unconditional = pair(name, options, plain, dim)
    with torch.no_grad():
        norm.conditional.table.weight.copy_(torch.randn(3, 8))
    scale, shift = norm.conditional.table.weight.detach()[LABELS].chunk(2, 1)
    expected = unconditional(draw(dim)) * (1 + rows(scale, dim)) + rows(shift, dim)
    same(norm(draw(dim), LABELS), expected)


@every_pair
def test_a_vector_acts_by_a_linear_map(name, options, plain, dim):
    norm, unconditional = pair(name, options, plain, dim, label_features=5)
    with torch.no_grad():
        for parameter in norm.conditional.linear.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    vectors = torch.randn(3, 5, dtype=torch.float64)
    scale, shift = norm.conditional.linear(vectors).chunk(2, 1)
    expected = unconditional(draw(dim)) * (1 + rows(scale, dim)) + rows(shift, dim)
    same(norm(draw(dim), vectors), expected)


@every_pair
def test_gradients_reach_the_rows_in_use_only(name, options, plain, dim):
    norm, _ = pair(name, options, plain, dim)
    (norm(draw(dim), LABELS) * draw(dim, seed=1)).sum().backward()
    assert (norm.conditional.table.weight.grad.abs().sum(1) > 0).tolist() == [True, False, True]


@every_pair
def test_gradients_reach_the_vector(name, options, plain, dim):
    norm, _ = pair(name, options, plain, dim, label_features=5)
    with torch.no_grad():
        norm.conditional.linear.weight.copy_(torch.randn(8, 5))
    vectors = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: norm(draw(dim), v), vectors, fast_mode=True)


@every_pair
def test_the_context_gives_what_the_argument_gives(name, options, plain, dim):
    norm, _ = pair(name, options, plain, dim)
    with norm_context(label=LABELS):
        assert torch.equal(norm(draw(dim)), norm(draw(dim), LABELS))


@pytest.mark.parametrize("name", ["conditional_batch", "conditional_instance", "conditional_group"])
@pytest.mark.parametrize(
    ("label", "features", "message"),
    [
        (LABELS.double(), 0, r"label is a tensor of one integer for each of the 3 samples, got torch.float64 of shape"),
        (LABELS[:2], 0, r"each of the 3 samples, got torch.int64 of shape \(2,\)"),
        (LABELS + 1, 0, "label 3 is out of range: num_classes is 3, so 0 to 2"),
        (LABELS, 5, r"label is a vector of 5 for each of the 3 samples, got \(3,\)"),
        (torch.ones(3, 4), 5, r"label is a vector of 5 for each of the 3 samples, got \(3, 4\)"),
        ("cat", 5, "got 'cat'"),
    ],
)
def test_labels_of_the_wrong_kind_are_refused(name, label, features, message):
    groups = {"num_groups": 2} if name == "conditional_group" else {}
    norm = make_norm({"name": name, "num_classes": 3, "label_features": features, **groups}, 4)
    with pytest.raises(NormError, match=message):
        norm(torch.randn(3, 4, 3, 2), label)


@pytest.mark.parametrize("option", [{"num_classes": 0}, {"label_features": -1}])
def test_tables_without_rows_are_refused(option):
    (name,) = option
    with pytest.raises(NormError, match=f"{name} must be at least"):
        make_norm({"name": "conditional_batch", **option}, 4)


STYLES = {1: (7,), 2: (5, 6), 3: (2, 4, 3), "tokens": (9,)}


@pytest.mark.parametrize("dim", list(STYLES))
@pytest.mark.parametrize("samples", [1, 3])
def test_adaptive_instance_norm_gives_mean_and_deviation_of_a_style_of_any_size(dim, samples):
    size = STYLES[dim]
    shape = (samples, *size, 4) if dim == "tokens" else (samples, 4, *size)
    x_shape = (3, 5, 4) if dim == "tokens" else (3, 4, *(3,) * dim)
    style = torch.randn(shape, dtype=torch.float64) * 3 + 1
    norm = make_norm({"name": "adaptive_instance", "eps": 1e-14}, 4, dim)
    y = norm(torch.randn(x_shape, dtype=torch.float64) * 2 - 5, style)
    assert y.shape == x_shape
    for moment in (lambda v: v.mean(space_axes(dim)), lambda v: v.std(space_axes(dim), correction=0)):
        torch.testing.assert_close(moment(y), moment(style).expand(3, 4), rtol=0, atol=1e-10)


def test_adaptive_instance_norm_by_its_own_input_is_the_identity():
    x = draw(2)
    same(make_norm("adaptive_instance", 4)(x, x), x)


def test_adaptive_instance_norm_passes_gradients_to_the_style():
    norm = make_norm("adaptive_instance", 4)
    style = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda style: norm(draw(2), style), style, fast_mode=True)


@pytest.mark.parametrize(
    ("style", "got"),
    [
        (torch.ones(3, 5, 2, 2), r"\(3, 5, 2, 2\)"),
        (torch.ones(2, 4, 2, 2), r"\(2, 4, 2, 2\)"),
        (torch.ones(4, 2, 2), r"\(4, 2, 2\)"),
        ("monet", "'monet'"),
    ],
)
def test_a_style_of_the_wrong_shape_is_refused(style, got):
    message = rf"style is a feature map of 4 channels .* batch or one sample, for input \(3, 4, 3, 2\); got {got}"
    with pytest.raises(NormError, match=message):
        make_norm("adaptive_instance", 4)(torch.randn(3, 4, 3, 2), style)
