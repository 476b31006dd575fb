"""Leakage is told in one sentence and a table; a batch's composition by what it does to one sample's logit."""

from __future__ import annotations

import re

from ics_apps.reports.probe_sections.samples import TABLE_ROWS, composition_section, leakage_section


def module(name, ratio, source=False, allowed=False, step=0, order=0):
    return {"step": step, "module": name, "order": order, "ratio": ratio, "is_source": source, "allowed": allowed}


def logits(step, *means, std=0.1):
    return [{"step": step, "share": i / 4, "mean": mean, "std": std, "count": 8} for i, mean in enumerate(means)]


def test_a_net_without_leakage_says_so_and_shows_no_table(table_of):
    section = leakage_section(table_of("leakage", [module("conv", 0.0), module("norm", 0.0, order=1)]))
    assert section.note.startswith("No sample's output depends on another's: at step 0 the ratio was 0 in 2 modules.")
    assert section.tables == ()
    assert section.missing == ""


def test_modules_that_mix_are_named_and_those_that_may_not_are_marked(table_of):
    rows = [
        module("stem", 0.0),
        module("std", 0.5, source=True, allowed=True, order=1),
        module("bn", 0.125, source=True, order=2),
    ]
    section = leakage_section(table_of("leakage", rows))
    assert section.note.startswith(
        "At step 0 samples saw each other from std on, in which each other sample of the batch had 50 % of a sample's "
        "own influence on its output. 2 modules mixed samples, 1 of them not allowed."
    )
    (table,) = section.tables
    assert table.rows == (("bn", "0.125", "not allowed"), ("std", "0.500", "allowed"))
    assert table.best == {(0, 2)}


def test_mixing_that_is_allowed_is_told_as_such(table_of):
    section = leakage_section(table_of("leakage", [module("bn", 0.125, source=True, allowed=True)]))
    assert "1 module mixed samples, all of them allowed." in section.note
    assert section.tables[0].best == frozenset()


def test_the_last_measurement_counts(table_of):
    rows = [module("bn", 0.5, source=True), module("bn", 0.0, step=10)]
    assert "No sample's output depends" in leakage_section(table_of("leakage", rows)).note


def test_many_modules_are_cut_to_those_that_may_not_mix_first(table_of):
    rows = [module(f"m{i}", 0.1, source=True, allowed=i < 26, order=i) for i in range(30)]
    (table,) = leakage_section(table_of("leakage", rows)).tables
    assert [row[0] for row in table.rows[:5]] == ["m26", "m27", "m28", "m29", "m0"]
    assert table.caption == f"{TABLE_ROWS} of 30 modules."


def test_a_table_without_a_ratio_is_missing(table_of):
    assert leakage_section(table_of("leakage", [module("bn", "")])).missing


def test_the_logit_is_told_from_no_fakes_to_the_most(table_of):
    section = composition_section(table_of("batch_composition", [*logits(0, 1, 1, 1), *logits(9, 1.5, 1.0, 0.25)]))
    (figure,) = section.figures
    assert figure.caption.startswith(
        "At step 9 the logit of the same real sample went from 1.50 among 0 % fakes to 0.250 among 50 %, spread 0.100 "
        "over 8 batches."
    )
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    assert {"step 0", "step 9", "share of fakes in the batch (0 to 1)", "logit of the real sample"} <= set(labels)


def test_a_flat_logit_is_told_as_no_dependence(table_of):
    section = composition_section(table_of("batch_composition", logits(0, 0.7, 0.7, 0.7, std=0.0)))
    assert section.figures[0].caption.startswith(
        "No sample's output depends on another's: at step 0 the logit was 0.700"
    )


def test_shares_that_were_measured_once_or_without_a_spread_can_be_drawn(table_of):
    rows = [{"step": 0, "share": 0.5, "mean": 1.0}]
    assert len(composition_section(table_of("batch_composition", rows)).figures) == 1


def test_no_finite_logit_is_missing(table_of):
    assert composition_section(table_of("batch_composition", logits(0, "nan", "inf"))).missing
