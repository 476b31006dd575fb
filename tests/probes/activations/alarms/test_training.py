from __future__ import annotations

import math

import numpy as np
import pytest

from ics_apps.probes.activations.alarms import Watch, make_rules

STEADY = np.tile([0.08, 0.1, 0.12], 8)  # drifts of 24 samples


def test_the_first_layer_that_is_not_finite_is_named(table, alarms_of):
    layers = ["conv:a", "conv:b", "conv:c", "conv:d"]
    (alarm,) = alarms_of("nonfinite", [table(layers, order=[3, 1, 0, 2], nonfinite_count=[1, 7, 0, 9])])
    assert alarm.layer == "b"
    assert alarm.sentence == (
        "At step 0, 7 of 2048 values of b are NaN or infinite, and so it goes on in 2 layers after it."
    )


def test_weights_that_were_finite_before_are_the_cause(table, alarms_of):
    tables = [
        table(["conv:a"], weight_norm=3.0),
        table(["conv:a"], weight_norm=math.nan, nonfinite_count=2048, rms=math.nan),
    ]
    (alarm,) = alarms_of("nonfinite", tables)
    assert alarm.sentence.endswith("; its weights are not finite: an update broke it, not this forward.")


def test_a_layer_without_weights_is_not_blamed_on_them(table, alarms_of):
    (alarm,) = alarms_of("nonfinite", [table(["activation:a"], nonfinite_count=1)])
    assert "weights" not in alarm.sentence


def test_a_scaler_may_skip_two_steps(table):
    watch = Watch(make_rules(["nonfinite"]))
    bad = table(["conv:a"], nonfinite_count=1)
    assert [len(watch.check(bad, step, 0, fp16_scaled=True)) for step in range(4)] == [0, 0, 1, 0]


@pytest.mark.parametrize(("drift", "fires"), [(2.0, True), (0.45, False)])
def test_a_drift_far_above_the_layers_history_is_an_alarm(table, alarms_of, drift, fires):
    found = alarms_of("drift_spike", [table(["conv:a"], drift_w1=value) for value in [math.nan, *STEADY, drift]])
    assert bool(found) is fires


def test_a_spike_below_the_floor_is_no_alarm(table, alarms_of):
    assert not alarms_of("drift_spike", [table(["conv:a"], drift_w1=value) for value in [*STEADY / 100, 0.45]])


def test_what_ten_values_show_by_chance_is_no_spike(table, alarms_of):
    assert not alarms_of("drift_spike", [table(["conv:a"], drift_w1=value, count=10) for value in [*STEADY, 2.5]])


def test_a_spike_needs_ten_samples_of_history(table, alarms_of):
    assert not alarms_of("drift_spike", [table(["conv:a"], drift_w1=value) for value in [*STEADY[:9], 5.0]])


def test_spikes_of_many_layers_are_one_alarm_about_the_step(table, alarms_of):
    layers = ["conv:a", "conv:b", "conv:c"]
    (alarm,) = alarms_of("drift_spike", [table(layers, drift_w1=value) for value in [*STEADY, 2.0]])
    assert alarm.layer == "a"
    assert alarm.sentence.endswith("2 more layers moved at once, so it is the data or the learning rate.")


@pytest.mark.parametrize(("moved", "layer"), [([0], "0"), ([5], None), ([5, 6], "5")])
def test_only_the_first_layer_or_a_quarter_of_all_can_spike(table, alarms_of, moved, layer):
    layers = [f"conv:{index}" for index in range(8)]
    spike = [2.0 if index in moved else 0.1 for index in range(8)]
    found = alarms_of("drift_spike", [table(layers, drift_w1=value) for value in [*STEADY, spike]])
    assert [alarm.layer for alarm in found] == ([] if layer is None else [layer])


def test_drift_that_grows_from_sample_to_sample_is_no_spike(table, alarms_of):
    growing = [*STEADY, 0.2, 0.39, 0.75, 1.0]
    assert not alarms_of("drift_spike", [table(["conv:a"], drift_w1=value) for value in growing])


def test_drift_that_falls_as_training_settles_is_no_alarm(table, alarms_of):
    rng = np.random.default_rng(0)
    drifts = 2 * np.exp(-np.arange(200) / 25) * rng.lognormal(0, 0.3, 200)
    assert not alarms_of("drift_spike", [table(["conv:a"], drift_w1=value) for value in drifts])


def steps_of(table, *ratios):
    layers = [f"conv:{index}" for index in range(len(ratios))]
    return [table(layers, update_ratio=list(ratios))] * 10


@pytest.mark.parametrize(("ratio", "fires"), [(0.2, True), (0.05, False), (1e-6, True), (1e-4, False), (0.0, False)])
def test_one_layer_that_moves_unlike_the_others_is_an_alarm(table, alarms_of, ratio, fires):
    found = alarms_of("update_ratio", steps_of(table, 1e-3, ratio, 2e-3), every=20)
    assert bool(found) is fires


def test_the_end_of_a_schedule_is_no_alarm(table, alarms_of):
    assert not alarms_of("update_ratio", steps_of(table, 1e-7, 1e-9, 2e-7), every=20)


def test_norms_may_move_as_they_like(table, alarms_of):
    assert not alarms_of("update_ratio", [table(["norm:a"], update_ratio=5.0)] * 10, every=20)


def test_large_first_steps_are_no_alarm(table, alarms_of):
    assert not alarms_of("update_ratio", steps_of(table, 0.5), every=10)
    assert alarms_of("update_ratio", steps_of(table, 0.5), every=20)[0].step == 140
