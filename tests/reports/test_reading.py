"""Every number in the words is one that stands in the files."""

from __future__ import annotations

from itertools import chain

import pytest

from ics_apps.reports.reading import describe_run
from ics_apps.reports.run_files import read_run
from ics_apps.runs import layout


def words_of(run) -> str:
    return " ".join(chain(*describe_run(read_run(run))))


def test_words_say_how_the_main_metric_went(make_run):
    words = words_of(make_run())
    assert "The run finished at step 400 (epoch 4, counted from 0) after 1 min 1 s." in words
    assert "val/dice rose from 0.610 to 0.800 over 10 values; its best, 0.820, is at step 320; on the test" in words
    assert "on the test set it is 0.810." in words


def test_best_value_of_a_distance_is_its_lowest(make_run):
    run = make_run()
    (run / layout.METRICS_TABLE).write_text("step,epoch,val/hd95\n1,0,9\n2,0,3\n3,0,5\n", encoding="utf-8")
    assert "val/hd95 fell from 9.00 to 5.00 over 3 values; its best, 3.00, is at step 2" in words_of(run)


def test_loss_is_told_where_no_other_metric_was_validated(make_run):
    run = make_run()
    (run / layout.METRICS_TABLE).write_text("step,epoch,val/loss,val/odd\n1,0,2,1\n2,0,2,1\n", encoding="utf-8")
    assert "val/loss stayed at 2.00 over 2 values" in words_of(run)


def test_layer_that_drifted_most_is_named_with_its_median_and_peak(make_run):
    def change(row):
        moving = row["layer"] == "net.decoder.1.norm1"
        drift = (0.9 if row["step"] == 40 else 0.3) if moving else 0.05
        return {**row, "drift_w1": drift if row["step"] else float("nan")}

    words = words_of(make_run(change=change))
    assert (
        "The layer that drifted most, of 34, is net.decoder.1.norm1: between two samples its output moved by 0.300 "
        "standard deviations (median over the run), at most by 0.900 at step 40." in words
    )


def test_no_dead_channel_is_said_with_the_number_of_channels(make_run):
    assert "No dead channels among 160 at the last sample." in words_of(make_run())


def test_dead_channels_are_counted_at_the_last_sample(make_run):
    def change(row):
        dying = row["layer"] == "net.encoder.1.act2"
        return {**row, "dead_channels": row["step"] // 100} if dying else {**row, "dead_channels": -1}

    assert (
        "3 of 16 channels were dead at the last sample, the largest share in net.encoder.1.act2 (3 of 16)."
        in words_of(make_run(change=change))
    )


def test_saturation_names_the_worst_layer_or_says_there_is_none(make_run):
    def change(row):
        return {**row, "saturated_fraction": 0.4} if row["layer"] == "net.bottleneck.act1" else row

    assert "No layer had 5 % or more of its values saturated" in words_of(make_run("calm"))
    words = words_of(make_run("flat", change=change))
    assert "1 of 10 layers had 5 % or more of their values saturated" in words
    assert "most in net.bottleneck.act1 (40 %)." in words


def test_ratio_of_streams_is_told_by_its_range(make_run):
    def change(row):
        rms = {"net.decoder.0.concat.skip": 3.0, "net.decoder.0.concat.up": 1.0 if row["step"] else 6.0,
               "net.decoder.1.concat.skip": 1.0, "net.decoder.1.concat.up": 1.0}  # fmt: skip
        return {**row, "rms": rms.get(row["layer"], 1.0)}

    assert (
        "RMS(skip)/RMS(up) lies between 0.500 and 3.00 over 2 levels; at the last sample it is furthest from 1 at "
        "net.decoder.0 (3.00)." in words_of(make_run(change=change))
    )


def test_first_layer_with_a_value_that_is_not_finite_is_named(make_run):
    start = {"net.encoder.1.conv1": 200, "net.decoder.0.conv2": 120}

    def change(row):
        return {**row, "nonfinite_count": int(row["step"] >= start.get(row["layer"], 10**9))}

    assert "not finite appeared in 2 of 34 layers, first in net.decoder.0.conv2 at step 120." in words_of(
        make_run(change=change)
    )


def test_running_statistics_that_lag_are_named(make_run):
    def change(row):
        return {**row, "running_gap": 0.75} if row["layer"] == "net.encoder.0.norm2" else row

    assert "The running statistics of net.encoder.0.norm2 are 0.750 standard deviations away" in words_of(
        make_run("lag", change=change)
    )
    assert "running statistics" not in words_of(make_run("calm"))


@pytest.mark.parametrize(
    ("status", "start"),
    [
        ("interrupted", "The run was interrupted at step 400"),
        ("failed", "The run failed at step 400"),
        ("running", "The run is marked as running, and so is one that was killed; its last metrics are from step 400"),
    ],
)
def test_status_is_told(make_run, status, start):
    assert words_of(make_run(record={"status": status, "seconds": None})).startswith(start)


def test_worst_case_is_named_with_its_score(make_run):
    assert "The worst of 3 pictured cases is slice-2 (dice 0.700)." in words_of(make_run())


def test_layer_furthest_from_its_first_sample_is_told_with_when_half_of_it_was_reached(make_watched):
    layers = [("a", "norm", "X"), ("b", "norm", "X"), ("c", "norm", "X")]
    far = {0: float("nan"), 40: 0.2, 80: 1.2, 120: 2.0}

    def change(row):
        return {**row, "reference_w1": far[row["step"]] if row["layer"] == "b" else 0.5 if row["step"] else far[0]}

    assert (
        "Furthest from its first sample is b, by 2.00 standard deviations at step 120 (half of that by step 80); the "
        "median of the largest distances of all 3 layers is 0.500." in words_of(
            make_watched(layers=layers, steps=sorted(far), change=change)
        )
    )  # fmt: skip


def test_gradients_of_the_first_and_the_last_layer_are_compared(make_watched):
    def change(row):
        return {**row, "grad_rms": (0.5 if row["step"] == 0 else 0.1) if row["layer"] == "a" else 0.2}

    layers = [("a", "conv", "X"), ("b", "norm", "X"), ("c", "linear", "X")]
    assert (
        "At step 360 the gradient's RMS is 0.100 in the first layer (a) and 0.200 in the last (c), the last 2.00 times "
        "the other; at step 0 the first 2.50 times the other." in words_of(make_watched(layers=layers, change=change))
    )


def test_alarms_are_told_by_rule_in_the_order_in_which_they_fired(make_watched):
    assert (
        "4 alarms fired: saturated in net.decoder.1.act2 at step 120; dead_units in 2 layers from step 180; "
        "drift_spike in net.decoder.0.norm1 at step 220." in words_of(make_watched())
    )


def test_no_alarm_is_said_only_of_a_run_that_was_watched(make_watched, make_run):
    assert words_of(make_watched(alarms=[])).endswith("No alarm fired.")
    assert "alarm" not in words_of(make_run())


def test_train_and_eval_gap_is_told_where_it_is_small_too(make_watched):
    def change(row):
        return {**row, "running_gap": 0.25 if row["layer"] == "a" else 0.125, "running_var_gap": 0.6931472}

    layers = [("a", "norm", "BatchNorm2d"), ("b", "norm", "BatchNorm2d")]
    assert (
        "Over 2 norms the batch's means are at most 0.250 standard deviations from the running ones at the last sample "
        "(a), variances at most 2.00 times." in words_of(make_watched(layers=layers, change=change))
    )
