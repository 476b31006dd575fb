from __future__ import annotations

import io

import numpy as np
import torch

from ics_apps.probes.activations.alarms import Watch, make_rules
from ics_apps.probes.activations.alarms.choice import RULE_NAMES

BAD, GOOD = 60, 10


def steps_fired(table, dead, watch=None):
    watch = watch or Watch(make_rules(["dead_units"]))
    tables = [table(["activation:act:ReLU"], dead_channels=count) for count in dead]
    return [step for step, rows in enumerate(tables) if watch.check(rows, step, 0)]


def test_an_alarm_waits_for_its_patience(table):
    assert steps_fired(table, [BAD, GOOD, BAD, GOOD, BAD, BAD]) == [5]


def test_an_alarm_is_raised_once_while_it_lasts(table):
    assert steps_fired(table, [BAD] * 50) == [1]


def test_an_alarm_is_raised_again_after_the_layer_recovered(table):
    assert steps_fired(table, [BAD] * 3 + [GOOD] * 2 + [BAD] * 3) == [1, 6]


def test_one_good_sample_is_no_recovery(table):
    assert steps_fired(table, [BAD] * 3 + [GOOD] + [BAD] * 3) == [1]


def test_a_sample_that_was_not_measured_counts_neither_way(table):
    assert steps_fired(table, [BAD, -1, -1, BAD]) == [3]


def test_calls_and_tags_are_counted_apart(table):
    watch = Watch(make_rules(["dead_units"]))
    for step in range(2):
        layers = ["activation:act:ReLU"] * 3
        rows = table(layers, tag=["", "fake", "fake"], call=[0, 0, 1], order=0, dead_channels=[GOOD, GOOD, BAD])
        found = watch.check(rows, step, 0)
    assert [alarm.layer for alarm in found] == ["act#fake.1"]


def test_layers_that_fail_together_are_one_alarm(table):
    watch = Watch(make_rules(["dead_units"]))
    rows = table(["activation:b", "activation:a", "activation:c"], order=[1, 0, 2], dead_channels=[BAD, BAD, GOOD])
    watch.check(rows, 0, 3)
    (alarm,) = watch.check(rows, 1, 3)
    assert (alarm.layer, alarm.epoch) == ("a", 3)
    assert alarm.sentence.endswith("; the same holds for 1 more layer.")


def test_a_healthy_table_raises_nothing_by_any_rule(table, alarms_of):
    layers = ["conv:a:Conv2d", "norm:b:BatchNorm2d", "activation:c:ReLU", "linear:d:Linear"] * 4
    layers = [f"{layer.split(':')[0]}:{index}:{layer.split(':')[2]}" for index, layer in enumerate(layers)]
    assert not alarms_of(None, [table(layers, update_ratio=1e-3, running_gap=0.1, batch_noise=0.1)] * 40, every=10)


def test_an_empty_table_raises_nothing(table):
    assert Watch().check(table([]), 0, 0) == []


def test_layers_may_appear_later(table):
    watch = Watch()
    watch.check(table(["conv:a"]), 0, 0)
    found = watch.check(table(["conv:new", "conv:a"], nonfinite_count=[1, 0]), 1, 0)
    assert [alarm.layer for alarm in found] == ["new"]


def test_alarms_are_of_plain_types(table):
    (alarm,) = Watch().check(table(["conv:a"], nonfinite_count=1), np.int64(3), np.int32(0))
    assert [type(value) for value in alarm.as_dict().values()] == [int, int, str, str, float, float, str, str]


def test_a_resumed_watch_goes_on_as_if_nothing_had_happened(table):
    rng = np.random.default_rng(0)
    layers = [f"{kind}:{index}" for index in range(3) for kind in ("conv", "norm", "activation")]

    def random_table():
        return table(
            layers,
            rms=10 ** rng.uniform(-4, 4, 9),
            dead_channels=rng.integers(-1, 65, 9),
            drift_w1=rng.lognormal(-2, 2, 9),
            grad_rms=10 ** rng.uniform(-6, 2, 9),
            running_gap=rng.uniform(0, 1, 9),
            update_ratio=10 ** rng.uniform(-7, 0, 9),
        )

    first, second = [random_table() for _ in range(30)], [random_table() for _ in range(30)]
    whole, before, after = Watch(), Watch(), Watch()
    for step, rows in enumerate(first):
        whole.check(rows, step * 10, 0)
        before.check(rows, step * 10, 0)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    expected = [whole.check(rows, 300 + step * 10, 1) for step, rows in enumerate(second)]
    assert [after.check(rows, 300 + step * 10, 1) for step, rows in enumerate(second)] == expected
    assert any(expected)


def test_a_state_of_other_rules_is_taken_as_far_as_it_goes(table):
    old = Watch(make_rules(["dead_units", "nonfinite"]))
    steps_fired(table, [BAD], old)
    new = Watch(make_rules(["saturated", "dead_units"]))
    new.load_state_dict(old.state_dict())
    assert steps_fired(table, [BAD], new) == [0]


def test_no_rule_changes_the_table(table):
    rows = table(["conv:a", "norm:b", "activation:c"])
    copies = {name: column.copy() for name, column in rows.items()}
    watch = Watch()
    assert len(watch.rules) == len(RULE_NAMES)
    watch.check(rows, 0, 0)
    for name, column in rows.items():
        np.testing.assert_array_equal(column, copies[name])
