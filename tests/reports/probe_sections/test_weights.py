"""Scale-invariant weights are told by how far a step turns them, and by what weight decay does there."""

from __future__ import annotations

import re

from ics_apps.reports.probe_sections.tables import NONE
from ics_apps.reports.probe_sections.weights import scale_invariance_section


def weight(name="conv.weight", step=0, **given):
    return {"step": step, "layer": name, "norm": 4.0, "effective_lr": 1e-3, "rotation": 0.01,
            "expected_rotation": 0.005, "weight_decay": 1e-4, **given}  # fmt: skip


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)


def test_weight_decay_is_said_to_set_the_rotation(table_of):
    section = scale_invariance_section(table_of("scale_invariance", [weight("a"), weight("b", weight_decay=0)]))
    assert section.note == (
        "Weight decay of 0.0001 acts on 1 of 2 weights whose scale a norm takes away. It does not limit what the net "
        "computes there: it sets how far a step turns these weights, about 0.00500 radians a step once norms "
        "have settled."
    )


def test_without_decay_the_effective_rate_is_said_to_fall(table_of):
    rows = [weight(weight_decay=0, expected_rotation="")]
    section = scale_invariance_section(table_of("scale_invariance", rows))
    assert section.note.startswith("No weight decay acts on the 1 weight whose scale a norm takes away")
    assert len(section.figures) == 2  # no map: nothing is expected


def test_measured_and_expected_rotation_share_an_axis(table_of):
    rows = [weight(name, step, rotation=angle) for step in (0, 9) for name, angle in (("a", 0.01), ("b", 0.03))]
    rotation, rate, ratio = scale_invariance_section(table_of("scale_invariance", rows)).figures
    assert rotation.caption.startswith(
        "At step 9 a step turned the median weight by 0.0200 radians; 0.00500 are expected in equilibrium."
    )
    assert {"median weight", "expected", "angle (radians)", "step"} <= set(texts(rotation))
    assert "was 0.00100 at step 0 and 0.00100 at step 9" in rate.caption
    assert {"a", "b", "rotation / expected rotation (no unit)"} <= set(texts(ratio))


def test_a_table_of_gaps_is_missing(table_of):
    rows = [weight(rotation="", expected_rotation="", effective_lr="", weight_decay="")]
    section = scale_invariance_section(table_of("scale_invariance", rows))
    assert section.missing
    assert section.note == ""
    assert section.tables[0].rows == (("conv.weight", "4", NONE, NONE, NONE, NONE),)
