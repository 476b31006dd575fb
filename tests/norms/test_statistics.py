"""Running statistics re-estimated exactly, on one process; what two processes do is in `test_distributed`."""

from __future__ import annotations

import copy
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from ics_apps.norms import make_norm
from ics_apps.norms.statistics import last_batch_problem, recompute_statistics


def net(*, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), make_norm("batch", 4), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 1, 5, 5, generator=generator) * 2 + 3 for size in sizes]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(deadline=None)  # the first call loads what torch loads late
@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=6),
    st.sampled_from([0.0, 1e6]),
)
def test_they_are_the_moments_of_all_values_however_these_are_split(parts, offset):
    layer = nn.BatchNorm1d(1).double()
    batches = [torch.tensor(part, dtype=torch.float64).unsqueeze(1) + offset for part in parts]
    report = recompute_statistics(layer, batches)
    joined = torch.cat(batches)
    count = len(joined)
    assert report.values == {"": count}
    assert report.batches == len(batches)
    unbiased = joined.var(0) if count > 1 else torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(layer.running_mean, joined.mean(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(layer.running_var, unbiased, rtol=1e-8, atol=1e-8)


def test_float32_values_far_from_zero_do_not_cancel():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) + 4000
    layer = nn.BatchNorm1d(3)
    recompute_statistics(layer, x.split(64))
    torch.testing.assert_close(layer.running_var, x.double().var(0).float(), rtol=1e-6, atol=0)


def test_a_deeper_layer_sees_inputs_normalised_by_their_own_batch():
    model, batches = net(), images(4, 3, 2)
    expected = copy.deepcopy(model)
    inputs = []
    expected[-1].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    for batch in batches:
        expected(batch)
    values = torch.cat([x.movedim(1, 0).flatten(1) for x in inputs], 1)
    recompute_statistics(model, batches)
    torch.testing.assert_close(model[-1].running_mean, values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[-1].running_var, values.var(1), rtol=1e-5, atol=1e-6)


def test_on_one_batch_evaluation_then_equals_training_but_for_the_two_variances():
    layer = make_norm({"name": "batch", "eps": 1e-12}, 4).double()
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64) * 5 + 1
    y = layer.train()(x)
    recompute_statistics(layer, [x])
    torch.testing.assert_close(layer.eval()(x), y * (11 / 12) ** 0.5, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "dim"), [("batch", 0), ("sync_batch", 3), ("batch", "tokens"), ("switchable", 2),
                                           ("switchable", "tokens"), ("batch_noisy", 2)])  # fmt: skip
def test_every_norm_of_ours_with_running_moments_is_re_estimated(name, dim):
    norm = make_norm(name, 4, dim).double()
    x = torch.randn((9, 5, 4) if dim == "tokens" else (9, 4, 2, 3, 2)[: 2 + dim], dtype=torch.float64) * 3 + 2
    recompute_statistics(norm, x.split(4))
    rows = x.movedim(-1 if dim == "tokens" else 1, 0).flatten(1)
    inner = norm.norm if name == "batch_noisy" else norm
    torch.testing.assert_close(inner.running_mean, rows.mean(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(inner.running_var, rows.var(1), rtol=0, atol=1e-12)


def test_a_layer_that_keeps_a_variance_alone_gets_the_variance_about_the_mean():
    class Spread(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_var", torch.ones(4))

        def forward(self, x):
            return x / self.running_var.sqrt().view(1, 4, 1, 1)

    layer, x = Spread(), torch.randn(5, 4, 3, 3) + 7
    recompute_statistics(layer, [x])
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3)))


def test_several_calls_of_one_layer_are_merged():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            self.norm(x)
            self.norm(x[:1] + 5)

    model, x = Twice(), torch.randn(4, 2)
    assert recompute_statistics(model, [x]).values == {"norm": 5}
    torch.testing.assert_close(model.norm.running_var, torch.cat([x, x[:1] + 5]).var(0))


def test_all_else_stays_as_it_was():
    model = net(dropout=0.5)
    model[4].eval()
    model[4].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = state(model)
    loader = DataLoader(torch.cat(images(9)), batch_size=4, shuffle=True)
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def forward(model, x):
        np.random.rand()
        random.shuffle([1, 2, 3])
        return model(x)

    recompute_statistics(model, loader, forward=forward)
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off():
    plain, dropping = net(), net(dropout=0.9)
    recompute_statistics(plain, images(4, 4))
    recompute_statistics(dropping, images(4, 4))
    assert same(state(plain), state(dropping))


def test_a_batch_of_one_value_is_no_trouble():
    layer = make_norm("batch", 2, 0)
    recompute_statistics(layer, [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])])
    assert layer.running_mean.tolist() == [2, 3]
    assert layer.running_var.tolist() == [2, 2]


def test_a_limit_takes_the_first_batches():
    model, expected = net(), net()
    recompute_statistics(expected, images(4, 3))
    assert recompute_statistics(model, images(4, 3, 2), max_batches=2).batches == 2
    assert same(state(model), state(expected))


def test_blend_mixes_old_and_new_moments():
    layer = nn.BatchNorm1d(1)
    layer.running_mean.fill_(10)
    layer.running_var.fill_(3)
    recompute_statistics(layer, [torch.tensor([[1.0], [3.0]])], blend=0.25)
    assert layer.running_mean.item() == pytest.approx(0.75 * 10 + 0.25 * 2)
    assert layer.running_var.item() == pytest.approx(0.75 * 3 + 0.25 * 2)


def test_statistics_of_a_shifted_domain_undo_the_shift():
    """AdaBN on x -> 3 x + 2, which the first norm cancels."""
    source = images(8, 8)
    model = nn.Sequential(make_norm("batch", 1), nn.Conv2d(1, 2, 3)).double()
    adapted = copy.deepcopy(model)
    recompute_statistics(model, [x.double() for x in source])
    recompute_statistics(adapted, [3 * x.double() + 2 for x in source])
    x = source[0].double()
    torch.testing.assert_close(adapted.eval()(3 * x + 2), model.eval()(x), rtol=0, atol=1e-5)


def test_other_statistics_are_skipped_with_a_reason():
    class Sets(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3, 1))
            self.register_buffer("running_var", torch.ones(3, 1))

        def forward(self, x):
            return x

    class Scale(Sets):
        def __init__(self):
            super().__init__()
            del self.running_var

    model = nn.Sequential(make_norm("batch_frozen", 1), nn.InstanceNorm2d(1, track_running_stats=True), Sets(), Scale(),
                          nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1))  # fmt: skip
    before = state(model)
    report = recompute_statistics(model, images(4))
    assert report.skipped == {
        "0": "it is frozen",
        "1": "it averages the statistics of samples, not those of batches",
        "2": "it keeps several sets of statistics",
        "3": "it keeps no running variance",
    }
    assert report.values == {"5": 100}
    after = state(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "5.running_mean",
        "5.running_var",
    }


def test_a_layer_that_no_batch_reaches_is_named():
    class Spare(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    report = recompute_statistics(Spare(nn.BatchNorm2d(1), nn.BatchNorm2d(1)), images(4))
    assert report.skipped == {"1": "no batch reached it"}
    assert report.values == {"0": 100}


def test_a_model_without_running_statistics_is_left_alone():
    report = recompute_statistics(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)), iter(()))
    assert (report.batches, report.values, report.skipped) == (0, {}, {})


def test_a_compiled_model_is_re_estimated_as_the_plain_one():
    plain, inner = net(), net()
    compiled = torch.compile(inner, backend="eager")
    compiled(images(2)[0])
    recompute_statistics(plain, images(4, 3))
    recompute_statistics(compiled, images(4, 3))
    for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
        assert torch.equal(plain.state_dict()[name], inner.state_dict()[name])


def test_it_runs_inside_inference_mode():
    model, expected = net(), net()
    recompute_statistics(expected, images(4))
    with torch.inference_mode():
        recompute_statistics(model, images(4))
    assert same(state(model), state(expected))
    model.train()(images(4)[0]).sum().backward()


@pytest.mark.parametrize("wrap", [lambda x: (x, "label"), lambda x: [x]])
def test_the_input_is_the_batch_or_the_first_of_it(wrap):
    model, expected = net(), net()
    recompute_statistics(expected, images(4, 3))
    recompute_statistics(model, [wrap(x) for x in images(4, 3)])
    assert same(state(model), state(expected))


def test_other_batches_are_run_by_a_function_of_the_callers():
    model, expected = net(), net()
    recompute_statistics(expected, images(4))
    recompute_statistics(model, [{"image": x} for x in images(4)], forward=lambda model, batch: model(batch["image"]))
    assert same(state(model), state(expected))


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "there was no batch to take statistics from; give at least one"),
        (images(2), {"max_batches": 0}, "max_batches is None or at least 1, got 0"),
        (images(2), {"blend": 0.0}, "blend is the weight of the new moments and lies in (0, 1], got 0.0"),
        (images(2), {"blend": 1.5}, "lies in (0, 1], got 1.5"),
        ([{"image": 1, "mask": 2}], {}, "a batch is a dict with the keys image, mask, from which the model's input"),
        (
            [*images(2), torch.full((2, 1, 5, 5), torch.inf)],
            {},
            "the input of layer '1' is not finite; the running statistics are left as",
        ),
        (images(2), {"forward": lambda model, batch: None}, "no batch reached any of the 2 layers with running stati"),
    ],
)
def test_an_error_leaves_everything_as_it_was(batches, options, message):
    model = net()
    before = state(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        recompute_statistics(model, batches, **options)
    assert same(state(model), before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "found"),
    [
        (33, 16, "the last batch of an epoch has 1 of 16 samples, and 2 layers that pool samples (first: 1) will take "
                 "their statistics from them; with one position a sample that is an error; give the train loader "
                 "drop_last=True"),
        (34, 16, "will take their statistics from them; with one position a sample that gives +-1 whatever the input"),
        (39, 16, "has 7 of 16 samples, and 2 layers that pool samples (first: 1) will take their statistics from them"),
        (1, 2, "has 1 of 2 samples"),
        (40, 16, None),
        (32, 16, None),
        (13, 8, None),
        (7, 4, None),
        (5, 1, None),
    ],
)  # fmt: skip
def test_a_small_last_batch_is_foreseen(num_samples, batch_size, found):
    problem = last_batch_problem(num_samples, batch_size, net())
    if found is None:
        assert problem is None
    else:
        assert found in problem


@pytest.mark.parametrize(
    "module",
    [make_norm("group", 8), make_norm("batch_frozen", 8), make_norm({"name": "batch", "small_batch": "running"}, 8),
     nn.InstanceNorm2d(8, track_running_stats=True), nn.BatchNorm2d(8).eval()],
)  # fmt: skip
def test_a_small_last_batch_is_no_problem_for_layers_that_do_not_pool_it(module):
    assert last_batch_problem(33, 16, module) is None


@pytest.mark.parametrize("module", [make_norm("switchable", 8), nn.BatchNorm2d(8, track_running_stats=False)])
def test_every_layer_that_pools_samples_is_counted(module):
    assert "1 layer that pools samples will" in last_batch_problem(33, 16, module)
