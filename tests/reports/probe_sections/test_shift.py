"""The section about covariate shift says which layer shifted most, and the median above the first layer."""

from __future__ import annotations

import re

import pytest

from ics_apps.reports.probe_sections.shift import ics_section


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)


def ics(step, *shifts):
    return [
        {"step": step, "layer": f"enc.{order}.conv", "order": order, "grad_norm": 2.0, "shift": 2 * shift,
         "relative_shift": shift, "cosine": 1 - shift / 2}
        for order, shift in enumerate(shifts)
    ]  # fmt: skip


def test_the_shift_is_told_of_the_layer_that_shifted_most_and_of_the_median_above_the_first(table_of):
    section = ics_section(table_of("ics", [*ics(0, 0, 0.9, 0.9, 0.9), *ics(900, 0, 0.08, 0.31, 0.06)]))
    assert section.figures[0].caption.startswith(
        "At step 900 the gradient of enc.2.conv changed by 0.310 of its length when the layers below stepped "
        "(cosine 0.845); the median layer's by 0.0800."
    )
    assert section.figures[1].caption.startswith(
        "At step 900 the gradient of enc.2.conv turned most, to a cosine of 0.845"
    )
    assert "changed by 0.900 at step 0 and 0.0800 at step 900" in section.figures[2].caption


def test_each_map_has_a_title_a_unit_and_the_layers_from_input_to_output(table_of):
    shift, cosine, _ = ics_section(table_of("ics", ics(0, 0, 0.1, 0.2))).figures
    assert [text for text in texts(shift) if text.startswith("enc")] == ["enc.0.conv", "enc.1.conv", "enc.2.conv"]
    assert {"Internal covariate shift of each layer", "|change of the gradient| / |gradient|", "step"} <= set(
        texts(shift)
    )
    assert {"Direction of the gradient before and after", "cosine (no unit)", "step"} <= set(texts(cosine))


def test_a_net_without_any_shift_says_so(table_of):
    section = ics_section(table_of("ics", [{**row, "cosine": ""} for row in ics(0, 0, 0)]))
    assert section.figures == ()
    assert section.missing.startswith("No shift above 0 was measured")


def test_two_layers_have_no_median(table_of):
    section = ics_section(table_of("ics", ics(0, 0, 0.2)))
    assert len(section.figures) == 2
    assert "median" not in section.figures[0].caption


def test_all_figures_of_a_layer_stand_in_the_folded_table(table_of):
    (table,) = ics_section(table_of("ics", [*ics(0, 0, 0.5), *ics(100, 0, 0.25)])).tables
    assert table.header == ("layer", "|gradient|", "|change|", "|change| / |gradient|", "cosine")
    assert table.rows == (("enc.0.conv", "2", "0", "0", "1"), ("enc.1.conv", "2", "0.500", "0.250", "0.875"))
    assert table.fold


def test_layers_that_were_chosen_without_the_first_all_count(table_of):
    rows = [{**row, "order": row["order"] + 3} for row in ics(0, 0.2, 0.4, 0.9)]
    section = ics_section(table_of("ics", rows))
    assert "the median layer's by 0.400." in section.figures[0].caption


@pytest.mark.parametrize("value", ["inf", "-1e300", "nan", "1e-300"])
def test_any_number_can_be_drawn(table_of, value):
    last = [
        {**row, **dict.fromkeys(("grad_norm", "shift", "relative_shift", "cosine"), value)} for row in ics(9, 0, 1, 2)
    ]
    assert ics_section(table_of("ics", [*ics(0, 0, 0.5, 0.25), *last])).figures
