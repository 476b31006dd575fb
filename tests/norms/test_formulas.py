"""Every norm in float64 against its formula written once more in numpy, on (B, C, S) arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ics_apps.norms import list_norms, norm_entry
from ics_apps.norms.axes import channel_axis, space_axes

EPS = 1e-5
N, C, S = 0, 1, 2


def column(vector):
    return vector[:, None]


def standardised(x, axes, eps=EPS):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + eps)


def affine(x, state, prefix=""):
    return x * column(state[f"{prefix}weight"]) + column(state[f"{prefix}bias"])


def with_running(x, state, prefix=""):
    mean, var = column(state[f"{prefix}running_mean"]), column(state[f"{prefix}running_var"])
    return affine((x - mean) / np.sqrt(var + EPS), state, prefix)


def batch(x, state, training, prefix=""):
    return affine(standardised(x, (N, S)), state, prefix) if training else with_running(x, state, prefix)


def batch_noisy(x, state, training, noise=None):
    y = batch(x, state, training, "norm.")
    return noise[0] * y + noise[1] if training else y


def layer_c(x, state, training):
    return affine(standardised(x, (C,)), state)


def group_of_two(x, state, training):
    grouped = x.reshape(x.shape[0], 2, -1, x.shape[2])
    return affine(standardised(grouped, (2, 3)).reshape(x.shape), state)


def rms(x, state, training):
    return x / np.sqrt((x**2).mean(C, keepdims=True) + np.finfo(np.float64).eps) * column(state["weight"])


def filter_response(x, state, training):
    z = affine(x / np.sqrt((x**2).mean(S, keepdims=True) + 1e-6), state)
    return np.maximum(z, column(state["threshold"]))


def global_response(x, state, training):
    energy = np.sqrt((x**2).sum(S, keepdims=True))
    share = energy / (energy.mean(C, keepdims=True) + 1e-6)
    return column(state["weight"]) * x * share + column(state["bias"]) + x


def dyt(x, state, training):
    return affine(np.tanh(state["alpha"][0] * x), state)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def switchable(x, state, training):
    axes = [(S,), (C, S), (N, S)] if len(state["mean_logits"]) == 3 else [(C, S), (N, S)]
    means = [x.mean(a, keepdims=True) for a in axes]
    variances = [x.var(a, keepdims=True) for a in axes]
    if not training:
        means[-1], variances[-1] = column(state["running_mean"]), column(state["running_var"])
    mean = sum(w * m for w, m in zip(softmax(state["mean_logits"]), means, strict=True))
    variance = sum(w * v for w, v in zip(softmax(state["var_logits"]), variances, strict=True))
    return affine((x - mean) / np.sqrt(variance + EPS), state)


FORMULAS = {
    "none": lambda x, state, training: x,
    "batch": batch,
    "batch_frozen": lambda x, state, training: with_running(x, state),
    "batch_noisy": batch_noisy,
    "layer": layer_c,
    "layer_c": layer_c,
    "layer_chw": lambda x, state, training: affine(standardised(x, (C, S)), state),
    "instance": lambda x, state, training: affine(standardised(x, (S,)), state),
    "group": group_of_two,
    "rms": rms,
    "filter_response": filter_response,
    "global_response": global_response,
    "dyt": dyt,
    "switchable": switchable,
}


def as_array(x, dim):
    x = x.movedim(channel_axis(dim), 1).flatten(2) if space_axes(dim) else x.unsqueeze(-1)
    return x.detach().numpy()


def test_every_norm_has_a_formula():
    assert sorted(FORMULAS) == list_norms()


@pytest.mark.parametrize("training", [True, False])
def test_values_equal_the_formula(norm, dim, training, layer, values):
    module, x = layer(norm, dim).train(training), values(dim)
    state = {name: value.clone().numpy() for name, value in module.state_dict().items()}
    arguments = {}
    if norm == "batch_noisy":
        torch.manual_seed(5)
        arguments["noise"] = [as_array(part, dim) for part in module.draw(x)]
    expected = FORMULAS[norm](as_array(x, dim), state, training, **arguments)
    torch.manual_seed(5)
    assert np.abs(as_array(module(x), dim) - expected).max() <= 1e-12


@pytest.mark.parametrize("norm_with_memory", [name for name in list_norms() if norm_entry(name).stateful])
@pytest.mark.parametrize("axes", [0, 2, "tokens"])
def test_running_statistics_take_a_tenth_of_the_new_batch_with_unbiased_variance(norm_with_memory, axes, layer, values):
    module, x = layer(norm_with_memory, axes), values(axes)
    before = {name: value.clone().numpy() for name, value in module.state_dict().items()}
    module(x)
    array = as_array(x, axes)
    expected = {"running_mean": array.mean((N, S)), "running_var": array.var((N, S), ddof=1)}
    for name, after in module.state_dict().items():
        statistic = name.removeprefix("norm.")
        if statistic in expected:
            assert np.abs(after.numpy() - (0.9 * before[name] + 0.1 * expected[statistic])).max() <= 1e-12
