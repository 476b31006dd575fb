"""Every norm in float64 against its formula written once more in numpy, on (B, C, S) arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ics_apps.norms import norm_entry
from ics_apps.norms.engine.axes import channel_axis, space_axes
from tests.norms.conftest import ON_ACTIVATIONS, given_condition

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


def moments(x, axes):
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def ghost_batch(x, state, training):
    if not training:
        return with_running(x, state)
    # Chunks of 2; the third sample would be alone and joins the chunk before.
    return affine(standardised(x, (N, S)), state)


def batch_renorm(x, state, training):
    mean, std = column(state["running_mean"]), column(state["running_std"])
    if not training:
        return affine((x - mean) / std, state)
    batch_mean, batch_var = moments(x, (N, S))
    batch_std = np.sqrt(batch_var + EPS)
    # The counter stands at 0: the limits are still 1 and 0.
    assert state["num_batches_tracked"] == 0
    return affine((x - batch_mean) / batch_std, state)


def virtual_batch(x, state, training):
    size = int(state["reference_size"])
    reference = (column(state["reference_mean"]), column(state["reference_var"]))
    own = moments(x, (S,))
    mean = (own[0] + size * reference[0]) / (size + 1)
    square = (own[1] + own[0] ** 2 + size * (reference[1] + reference[0] ** 2)) / (size + 1)
    return affine((x - mean) / np.sqrt(square - mean**2 + EPS), state)


def of_domain_1(state):
    chosen = {name: state[name][1] for name in ("running_mean", "running_var")}
    return chosen | {name: state[name].reshape(2, -1)[1] for name in ("weight", "bias")}


def lp_batch(x, state, training):
    if not training:
        return affine((x - column(state["running_mean"])) / column(state["running_scale"]), state)
    centred = x - x.mean((N, S), keepdims=True)
    spread = np.sqrt(np.pi / 2) * np.abs(centred).mean((N, S), keepdims=True) + EPS
    return affine(centred / spread, state)


def power_norm(x, state, training):
    # Within the warm-up: the batch's own quadratic mean.
    square = (x**2).mean((N, S), keepdims=True) if training else column(state["running_square"])
    return affine(x / np.sqrt(square + EPS), state)


def by_label(y, state, label):
    rows = state["conditional.table.weight"][label]
    scale, shift = np.split(rows[:, :, None], 2, axis=1)
    return y * (1 + scale) + shift


def conditional_batch(x, state, training, label):
    mean, var = moments(x, (N, S))
    if not training:
        mean, var = column(state["running_mean"]), column(state["running_var"])
    return by_label((x - mean) / np.sqrt(var + EPS), state, label)


def adaptive_instance(x, state, training, style):
    style_mean, style_var = moments(style, (S,))
    return standardised(x, (S,)) * np.sqrt(style_var + EPS) + style_mean


def grouped(x, of_four_axes):
    return of_four_axes(x.reshape(x.shape[0], 2, -1, x.shape[2])).reshape(x.shape)


def batch_channel(x, state, training):
    z = grouped(batch(x, state, training), lambda v: standardised(v, (2, 3)))
    return z * column(state["group_weight"].repeat(2)) + column(state["group_bias"].repeat(2))


def blended(x, state, training, own_axes):
    rho = np.clip(column(state["rho"]), 0, 1)
    plain = {**state, "weight": np.ones_like(state["weight"]), "bias": np.zeros_like(state["bias"])}
    return affine(rho * batch(x, plain, training) + (1 - rho) * standardised(x, own_axes), state)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def evonorm_s0(x, state, training):
    deviation = np.broadcast_to(
        np.sqrt(x.reshape(x.shape[0], 2, -1, x.shape[2]).var((2, 3), keepdims=True) + EPS),
        (x.shape[0], 2, x.shape[1] // 2, x.shape[2]),
    ).reshape(x.shape)
    return affine(x * sigmoid(column(state["slope"]) * x) / deviation, state)


def evonorm_b0(x, state, training):
    batch_var = x.var((N, S), keepdims=True) if training else column(state["running_var"])
    own = np.sqrt(x.var(S, keepdims=True) + EPS)
    return affine(x / np.maximum(np.sqrt(batch_var + EPS), column(state["slope"]) * x + own), state)


def derf(x, state, training):
    erf = np.vectorize(math.erf)
    return affine(erf(state["alpha"][0] * x + state["shift"][0]), state)


def scale_norm(x, state, training):
    return state["weight"][0] * x / np.maximum(np.sqrt((x**2).sum(C, keepdims=True)), EPS)


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
    "sync_batch": batch,
    "ghost_batch": ghost_batch,
    "batch_renorm": batch_renorm,
    "virtual_batch": virtual_batch,
    "batch_per_domain": lambda x, state, training: batch(x, of_domain_1(state), training),
    "lp_batch": lp_batch,
    "power_norm": power_norm,
    "conditional_batch": conditional_batch,
    "conditional_instance": lambda x, state, training, label: by_label(standardised(x, (S,)), state, label),
    "conditional_layer": lambda x, state, training, label: by_label(standardised(x, (C,)), state, label),
    "conditional_group": lambda x, state, training, label: by_label(
        grouped(x, lambda v: standardised(v, (2, 3))), state, label
    ),
    "adaptive_instance": adaptive_instance,
    "batch_channel": batch_channel,
    "batch_instance": lambda x, state, training: blended(x, state, training, (S,)),
    "batch_layer": lambda x, state, training: blended(x, state, training, (C, S)),
    "evonorm_s0": evonorm_s0,
    "evonorm_b0": evonorm_b0,
    "affine": lambda x, state, training: affine(x, state),
    "derf": derf,
    "scale_norm": scale_norm,
    "pixel": lambda x, state, training: x / np.sqrt((x**2).mean(C, keepdims=True) + 1e-8),
}
OVER_WINDOWS = ["divisive", "local_response"]
"""They need the shape of the space: their formulas are in `test_local`."""


WITH_MEMORY = [
    name
    for name in ON_ACTIVATIONS
    # The others keep other things, tested where they are made: a deviation, a quadratic mean, one set a domain.
    if norm_entry(name).stateful
    and name not in ("batch_renorm", "lp_batch", "power_norm", "virtual_batch", "batch_per_domain")
]


def as_array(x, dim):
    x = x.movedim(channel_axis(dim), 1).flatten(2) if space_axes(dim) else x.unsqueeze(-1)
    return x.detach().numpy()


def test_every_norm_has_a_formula():
    assert sorted([*FORMULAS, *OVER_WINDOWS]) == ON_ACTIVATIONS


@pytest.mark.parametrize("training", [True, False])
def test_values_equal_the_formula(norm, dim, training, layer, values):
    if norm in OVER_WINDOWS:
        return
    module, x = layer(norm, dim).train(training), values(dim)
    state = {name: value.clone().numpy() for name, value in module.state_dict().items()}
    arguments = {}
    if norm == "batch_noisy":
        torch.manual_seed(5)
        arguments["noise"] = [as_array(part, dim) for part in module.draw(x)]
    elif norm == "adaptive_instance":
        arguments["style"] = as_array(given_condition(norm, x), dim)
    elif norm.startswith("conditional"):
        arguments["label"] = given_condition(norm, x).numpy()
    expected = FORMULAS[norm](as_array(x, dim), state, training, **arguments)
    torch.manual_seed(5)
    assert np.abs(as_array(module(x), dim) - expected).max() <= 1e-12


@pytest.mark.parametrize("norm_with_memory", WITH_MEMORY)
@pytest.mark.parametrize("axes", [2, "tokens"])
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
