from __future__ import annotations

import pytest


@pytest.mark.parametrize(("dead", "fires"), [(58, True), (57, False)])
def test_more_than_nine_tenths_of_the_channels_dead_is_an_alarm(table, alarms_of, dead, fires):
    found = alarms_of("dead_units", [table(["activation:act:ReLU"], dead_channels=dead)] * 2)
    assert bool(found) is fires


@pytest.mark.parametrize(("dead", "fires"), [(4, True), (3, False)])
def test_few_channels_must_all_be_dead(table, alarms_of, dead, fires):
    found = alarms_of("dead_units", [table(["activation:squeeze:ReLU"], channels=4, dead_channels=dead)] * 2)
    assert bool(found) is fires


def test_the_sentence_gives_the_figures(table, alarms_of):
    (alarm,) = alarms_of("dead_units", [table(["activation:encoder.1.act:ReLU"], dead_channels=60)] * 2)
    assert alarm.sentence == (
        "At step 1, 60 of 64 channels of encoder.1.act are dead: 0 in each of the last 100 values read, "
        "as in every sample since step 0."
    )
    assert (alarm.value, alarm.threshold, alarm.layer) == (0.9375, 0.9, "encoder.1.act")


@pytest.mark.parametrize("layer", ["activation:attention:Softmax", "stream:skip:Identity", "norm:bn:BatchNorm2d"])
def test_zeros_that_are_no_dead_units_are_left_alone(table, alarms_of, layer):
    assert not alarms_of("dead_units", [table([layer], dead_channels=64)] * 5)


@pytest.mark.parametrize(
    ("kind", "share", "fires"), [("Tanh", 0.6, True), ("Tanh", 0.4, False), ("GELU", 0.6, False), ("GELU", 0.95, True)]
)
def test_saturation_of_a_hidden_layer_is_an_alarm(table, alarms_of, kind, share, fires):
    layers = ["linear:0", f"activation:1:{kind}", "linear:2"]
    found = alarms_of("saturated", [table(layers, saturated_fraction=[float("nan"), share, float("nan")])] * 3)
    assert bool(found) is fires


def test_a_sure_output_is_no_alarm(table, alarms_of):
    layers = ["linear:0", "activation:1:Tanh", "linear:2", "activation:3:Sigmoid"]
    assert not alarms_of("saturated", [table(layers, saturated_fraction=[float("nan"), 0.1, float("nan"), 1.0])] * 5)


@pytest.mark.parametrize(
    ("layer", "constant", "fires"),
    [("conv:c", 20, True), ("conv:c", 16, False), ("norm:n", 64, False), ("stream:s", 64, False)],
)
def test_constant_channels_are_an_alarm_except_in_norms(table, alarms_of, layer, constant, fires):
    found = alarms_of("constant_channel", [table([layer], constant_channels=constant)] * 3)
    assert bool(found) is fires
