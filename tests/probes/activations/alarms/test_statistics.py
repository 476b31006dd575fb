from __future__ import annotations

import math

import pytest

MINUTE = [0.0, 0.01]  # a gap that once was small


def gaps(table, values, **columns):
    return [table(["norm:bn:BatchNorm2d"], running_gap=value, **columns) for value in [*MINUTE, *values]]


@pytest.mark.parametrize(
    ("gap", "noise", "fires"), [(0.6, math.nan, True), (0.6, 0.1, True), (0.6, 0.3, False), (0.4, 0.01, False)]
)
def test_a_gap_counts_beyond_a_half_and_beyond_the_noise(table, alarms_of, gap, noise, fires):
    found = alarms_of("running_statistics", gaps(table, [gap] * 8, batch_noise=noise), every=20)
    assert bool(found) is fires


def test_statistics_may_be_on_their_way_for_fifty_steps(table, alarms_of):
    assert not alarms_of("running_statistics", gaps(table, [0.9] * 4), every=10)
    (alarm,) = alarms_of("running_statistics", gaps(table, [0.9] * 8), every=10)
    assert alarm.step == 70


def test_a_gap_that_still_falls_is_no_alarm(table, alarms_of):
    falling = [5 * 0.99**step for step in range(0, 220, 20)]
    assert min(falling) > 0.5
    tables = [table(["norm:bn"], running_var_gap=value, running_gap=value) for value in falling]
    assert not alarms_of("running_statistics", tables, every=20)


def test_a_variance_off_by_more_than_four_is_an_alarm(table, alarms_of):
    tables = [table(["norm:bn"], running_gap=0.0, running_var_gap=value) for value in [0.1] + [1.5] * 8]
    (alarm,) = alarms_of("running_statistics", tables, every=20)
    assert "the running variance of bn is off by a factor of 4.48" in alarm.sentence


def test_a_norm_with_real_and_fake_batches_may_stand_between_them(table, alarms_of):
    def both(gap):
        return table(["norm:d.bn", "norm:d.bn"], call=[0, 1], order=0, running_gap=gap)

    assert not alarms_of("running_statistics", [both(gap) for gap in [0.1] + [0.8] * 8], every=20)
    assert alarms_of("running_statistics", [both(gap) for gap in [0.1] + [1.2] * 8], every=20)


@pytest.mark.parametrize(("values", "fires"), [(4, True), (8, False), (16, False)])
def test_fewer_than_eight_independent_values_are_a_small_batch(table, alarms_of, values, fires):
    found = alarms_of("small_batch", [table(["norm:bn"], batch_noise=values**-0.5)] * 3)
    assert bool(found) is fires
