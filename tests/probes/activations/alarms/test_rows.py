from __future__ import annotations

import pytest

from ics_apps.probes.activations.alarms.rows import Rows


def test_rows_fit_a_table_of_the_same_layers_only(table):
    layers = ["conv:a", "conv:b"]
    rows = Rows(table(layers))
    assert rows.fit(table(layers, rms=7.0))
    assert not rows.fit(table(layers, call=[0, 1]))
    assert not rows.fit(table(layers, dtype="float16"))
    assert not rows.fit(table(layers[:1]))


def test_passes_keep_calls_and_tags_apart_and_each_has_an_output(table):
    layers = ["linear:g", "linear:d.0", "linear:d.1", "linear:d.0", "linear:d.1", "stream:s"]
    rows = Rows(table(layers, order=[0, 1, 2, 1, 2, 3], call=[0, 0, 0, 1, 1, 0]))
    assert [chain.tolist() for chain in rows.passes] == [[0], [1, 2], [3, 4]]
    assert rows.outputs.tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("types", "exempt"),
    [
        (["ReLU", "ReLU", "Tanh", "LeakyReLU", "LeakyReLU", "Sigmoid"], [1, 2, 4, 5]),  # generator, discriminator
        (["LeakyReLU", "Sigmoid", "ReLU", "Tanh"], [1, 2, 3]),  # the discriminator first
        (["SiLU", "SiLU", "Sigmoid", "SiLU", "SiLU"], [1, 2, 4]),  # squeeze and excitation
        (["Tanh", "Tanh", "Tanh"], []),  # with a linear layer behind
        (["GELU", "Softmax", "GELU", "Softmax", "GELU"], [4]),
    ],
)
def test_gates_and_outputs_are_told_from_hidden_activations(table, types, exempt):
    layers = [part for index, type_ in enumerate(types) for part in (f"activation:{index}:{type_}", f"linear:l{index}")]
    if types[-1] != "Tanh" or types[0] != "Tanh":
        layers.pop()  # the last activation is the output
    found = Rows(table(layers)).gates_and_outputs
    assert [index for index in range(len(types)) if found[2 * index]] == exempt


def test_a_discriminator_run_three_times_ends_in_one_output(table):
    layers = ["activation:d.1:LeakyReLU"] * 3 + ["activation:d.3:Sigmoid"] * 3 + ["activation:g.1:ReLU"]
    found = Rows(table(layers, order=[0, 0, 0, 1, 1, 1, 2], call=[0, 1, 2, 0, 1, 2, 0])).gates_and_outputs
    assert found.tolist() == [False] * 3 + [True] * 3 + [True]
