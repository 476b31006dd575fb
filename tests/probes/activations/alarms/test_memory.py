from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ics_apps.probes.activations.alarms.memory import WINDOW, Memory, medians

ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 9)),
    elements=st.floats(-100, 100, width=32) | st.just(np.nan),
)


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_medians_are_those_of_numpy(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        np.testing.assert_allclose(medians(rows), np.nanmedian(rows.astype(np.float64), axis=1), rtol=1e-12)


def test_a_key_keeps_its_place_and_its_past_when_others_appear(table):
    memory = Memory()
    rows = table(["conv:a"], rms=3.0)
    memory.meet(memory.find([("a", "", 0)]), rows, 7)
    slots = memory.find([("b", "", 0), ("a", "", 0)])
    assert slots.tolist() == [1, 0]
    assert memory.first_rms[slots].tolist()[1] == 3.0
    assert memory.first_step[slots].tolist() == [-1, 7]


def test_the_first_finite_sample_is_the_reference(table):
    memory = Memory()
    slots = memory.find([("a", "", 0)])
    for rms in (np.nan, 2.0, 5.0):
        memory.meet(slots, table(["conv:a"], rms=rms), 0)
    assert memory.first_rms.tolist() == [2.0]


def test_a_million_samples_need_no_more_memory_than_a_window(table):
    memory = Memory()
    slots = memory.find([("a", "", 0)])
    figures = dict.fromkeys(("running_gap", "running_var_gap", "drift_w1", "weight_norm", "gradient"), np.ones(1))
    for _ in range(3 * WINDOW):
        memory.remember(slots, figures)
    assert memory.drifts.shape == memory.gradients.shape == (1, WINDOW)
    size = sum(value.nbytes for value in vars(memory).values() if isinstance(value, np.ndarray))
    assert size < 350
