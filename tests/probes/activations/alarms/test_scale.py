from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

NET = [f"{kind}:{index}.{kind}" for index in range(5) for kind in ("conv", "norm", "activation")]


def test_an_output_far_above_the_start_explodes(table, alarms_of):
    rms = [[1.0, 1.0, 1.0], [1.0, 1500.0, 1.0], [1.0, 1500.0, 1.0]]
    (alarm,) = alarms_of("exploding_activation", [table(["conv:a", "conv:b", "conv:c"], rms=row) for row in rms])
    assert (alarm.layer, alarm.value, alarm.threshold) == ("b", 1500.0, 1000.0)


def test_the_output_of_a_net_may_be_as_large_as_its_targets(table, alarms_of):
    tables = [table(NET, rms=[1.0] * (len(NET) - 1) + [rms]) for rms in (1.0, 1e3, 1e6, 1e6)]
    assert not alarms_of("exploding_activation", tables)


def test_a_branch_that_begins_at_zero_may_grow(table, alarms_of):
    tables = [table(["conv:a", "norm:branch"], rms=[1.0, rms]) for rms in (0.0, 1e-4, 1.0, 20.0, 20.0)]
    assert not alarms_of("exploding_activation", tables)


@pytest.mark.parametrize(("dtype", "fires"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_the_end_of_the_number_range_matters_in_float16_only(table, alarms_of, dtype, fires):
    tables = [table(["conv:a"], dtype=dtype, max=7000.0)] * 2
    assert bool(alarms_of("exploding_activation", tables)) is fires


@pytest.mark.parametrize(
    ("rule", "factor"), [("exploding_activation", 10.0), ("vanishing_activation", 0.1), ("vanishing_activation", 0.0)]
)
def test_outputs_that_grow_or_shrink_over_depth_are_an_alarm(table, alarms_of, rule, factor):
    rms = [max(factor, 1e-9) ** index if factor else float(index < 5) for index in range(len(NET))]
    found = alarms_of(rule, [table(NET, rms=rms)] * 3)
    assert bool(found) is (factor > 0)  # exact zeros may be layers that begin at 0


def test_an_output_that_dies_is_an_alarm(table, alarms_of):
    rms = [[1.0, 1.0]] + [[1.0, 5e-4]] * 3
    (alarm,) = alarms_of("vanishing_activation", [table(["conv:a", "conv:b"], rms=row) for row in rms])
    assert (alarm.layer, alarm.step) == ("b", 3)


def test_small_inputs_that_shrink_everything_are_no_alarm(table, alarms_of):
    tables = [table(["conv:a", "conv:b"], rms=rms) for rms in [1.0] + [1e-4] * 5]
    assert not alarms_of("vanishing_activation", tables)


@pytest.mark.parametrize(("rule", "factor"), [("exploding_gradient", 4.0), ("vanishing_gradient", 0.25)])
def test_gradients_that_change_by_a_factor_a_layer_are_an_alarm(table, alarms_of, rule, factor):
    towards_first = [1e-3 * factor ** (len(NET) - index) for index in range(len(NET))]
    (alarm,) = alarms_of(rule, [table(NET, grad_rms=towards_first)] * 3)
    assert alarm.layer == "0.conv"


def test_a_mean_over_more_positions_is_no_vanishing_gradient(table, alarms_of):
    # The same gradient norm, spread over a million times more elements.
    numel = np.array([10**9] * 8 + [10**3] * 7)
    tables = [table(NET, numel=numel, grad_rms=1e-3 / np.sqrt(numel))] * 5
    assert not alarms_of("vanishing_gradient", tables)


def test_a_generator_and_its_discriminator_are_not_compared(table, alarms_of):
    layers = NET + [layer.replace(":", ":d.") for layer in NET] * 2
    count = len(NET)
    gradient = [1.0] * count + [1e-6] * (2 * count)  # the discriminator is sure of itself
    columns = {"call": [0] * (2 * count) + [1] * count, "order": [*range(2 * count), *range(count, 2 * count)]}
    tables = [table(layers, grad_rms=gradient, **columns)] * 5
    assert not alarms_of("exploding_gradient", tables)


@given(loss=st.lists(st.floats(-40, 0), min_size=20, max_size=40))
@settings(max_examples=25, deadline=None)
def test_gradients_that_vanish_together_with_the_loss_are_no_alarm(table, alarms_of, loss):
    loss = sorted(loss, reverse=True)
    tables = [table(NET, grad_rms=10.0**exponent) for exponent in loss]
    assert not alarms_of("vanishing_gradient", tables)
    assert not alarms_of("exploding_gradient", tables)


@pytest.mark.parametrize(("jump", "fires"), [(1.0, True), (5e-3, False)])
def test_a_gradient_must_jump_above_its_beginnings_too(table, alarms_of, jump, fires):
    # Memorised data: gradients fall from 1e-3 to 1e-6, where one hard sample is 5,000 times the median.
    history = [1e-3] * 10 + [1e-6] * 40 + [jump] * 2
    found = alarms_of("exploding_gradient", [table(["conv:a"], grad_rms=value) for value in history])
    assert bool(found) is fires


def test_the_gradient_of_a_branch_that_begins_near_zero_may_grow(table, alarms_of):
    history = [1e-6] * 20 + [1e-3] * 3
    assert not alarms_of("exploding_gradient", [table(["conv:a", "conv:b"], grad_rms=[1e-3, x]) for x in history])


@pytest.mark.parametrize(("up", "fires"), [(0.05, True), (0.5, False), (20.0, True), (math.nan, False), (0.0, True)])
def test_streams_of_unlike_size_are_an_alarm(table, alarms_of, up, fires):
    layers = ["stream:d.0.concat.skip", "stream:d.0.concat.up", "stream:d.1.concat.up"]
    found = alarms_of("stream_mismatch", [table(layers, rms=[1.0, up, 100.0])] * 5, every=50)
    assert bool(found) is fires


def test_outputs_with_unlike_numbers_of_positions_cannot_meet(table, alarms_of):
    tables = [table(["stream:encoder.0", "stream:encoder.1"], rms=[1.0, 100.0], numel=[64 * 64, 64 * 16])] * 5
    assert not alarms_of("stream_mismatch", tables, every=50)


def test_the_stream_alarm_names_both(table, alarms_of):
    tables = [table(["stream:c.skip", "stream:c.up"], rms=[1.0, 0.05])] * 5
    (alarm,) = alarms_of("stream_mismatch", tables, every=50)
    assert "RMS of c.skip is 1, 20 times that of c.up" in alarm.sentence
    assert alarm.step == 200  # patience of 3 after 100 steps


@given(scale=st.floats(-20, 20), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_constant_factor_on_all_outputs_changes_no_alarm(table, alarms_of, scale, seed):
    rms = 10 ** np.random.default_rng(seed).uniform(-4, 4, (6, len(NET)))
    for rule in ("exploding_activation", "vanishing_activation"):
        plain = alarms_of(rule, [table(NET, rms=row) for row in rms])
        scaled = alarms_of(rule, [table(NET, rms=row * 2.0 ** round(scale)) for row in rms])
        assert [(a.step, a.layer, a.value) for a in plain] == [(a.step, a.layer, a.value) for a in scaled]
