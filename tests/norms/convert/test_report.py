"""The report of a conversion as data and as a table."""

from __future__ import annotations

from ics_apps.norms.convert import ConversionReport, ConvertedNorm

ROWS = (
    ConvertedNorm("stem.norm", "BatchNorm2d", "GroupNorm", 64, "(B, C, S, S)"),
    ConvertedNorm("head", "StrangeNorm", None, note="class StrangeNorm is not known"),
)


def test_rows_are_told_apart_by_what_became_of_them():
    report = ConversionReport(ROWS)
    assert ([row.name for row in report.replaced], [row.name for row in report.kept]) == (["stem.norm"], ["head"])


def test_the_table_has_one_aligned_line_a_norm_and_one_a_remark():
    assert str(ConversionReport(ROWS, ("layer_norm in 2 (Block)",), ("a remark",))).splitlines() == [
        "2 norms: 1 replaced, 1 left",
        "stem.norm  64  (B, C, S, S)  BatchNorm2d -> GroupNorm",
        "head       ?   ?             StrangeNorm left: class StrangeNorm is not known",
        "not reached: layer_norm in 2 (Block)",
        "note: a remark",
    ]
