"""Sections of layers say in a sentence which layer stands out."""

from __future__ import annotations

import re

import pytest

from ics_apps.reports.probe_sections.layers import (
    conditioning_section,
    gradient_flow_section,
    input_drift_section,
)


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)


def test_inputs_are_told_by_their_distance_from_the_first_measurement(table_of):
    rows = [{"step": 0, "layer": "a", "order": 0, "mean": 0.0}]
    rows += [
        {"step": 9, "layer": name, "order": i, "reference_w1": w}
        for i, (name, w) in enumerate([("a", 0.2), ("b", 1.5)])
    ]
    section = input_drift_section(table_of("input_drift", rows))
    assert section.figures[0].caption.startswith(
        "At step 9 the input of b was 1.50 standard deviations away from where it began, that of the median layer "
        "0.850."
    )


def test_a_first_measurement_of_inputs_has_no_drift_yet(table_of):
    section = input_drift_section(table_of("input_drift", [{"step": 0, "layer": "a", "order": 0, "mean": 0.0}]))
    assert "which takes two measurements" in section.missing


def test_a_condition_states_its_damping(table_of):
    rows = [
        {"step": 0, "layer": name, "order": i, "features": 8, "condition": 10.0**power, "effective_rank": 2.5,
         "damping": damping}
        for i, (name, power, damping) in enumerate([("a", 1, 1e-3), ("b", 5, 2e-2)])
    ]  # fmt: skip
    section = conditioning_section(table_of("conditioning", rows))
    assert "log10 condition (damping 0.001 to 0.02)" in texts(section.figures[0])
    assert section.figures[0].caption.startswith("At step 0 the input of b was the worst conditioned, 100000;")
    assert section.tables[0].header[2] == "condition (damping 0.001 to 0.02)"
    assert section.tables[0].rows[0] == ("a", "8", "10", "2.50")


def test_gradients_are_compared_from_the_first_to_the_last_layer(table_of):
    rows = [{"step": 5, "layer": str(i), "order": i, "grad_norm": g, "snr": s}
            for i, (g, s) in enumerate([(0.01, 0.5), (0.3, 2.0), (0.2, 4.0)])]  # fmt: skip
    norm, snr = gradient_flow_section(table_of("gradient_flow", rows)).figures
    assert norm.caption.startswith(
        "At step 5 the gradient's norm was 0.0100 in the first layer and 0.200 in the last, 20.0 times less in the "
        "first."
    )
    assert snr.caption.startswith(
        "At step 5 the median layer's signal-to-noise ratio was 2.00; 1 of 3 layers were below 1."
    )


@pytest.mark.parametrize("value", ["inf", "-1e300", "nan", "1e-300"])
@pytest.mark.parametrize("name", ["input_drift", "conditioning", "gradient_flow"])
def test_any_number_can_be_drawn(tables, table_of, name, value):
    last = [
        {**row, **{key: value for key, cell in row.items() if isinstance(cell, float)}} for row in tables[name][-6:]
    ]
    rows = [*tables[name][-18:-6], *last]
    build = {"input_drift": input_drift_section, "conditioning": conditioning_section,
             "gradient_flow": gradient_flow_section}[name]  # fmt: skip
    assert build(table_of(name, rows)).figures
