"""Alarms are read as they were written, shown in time, and a page says when nobody watched."""

from __future__ import annotations

import re

import pytest

from ics_apps.reports.alarm_files import Alarm, read_alarms
from ics_apps.reports.alarm_section import alarm_section
from ics_apps.reports.alarm_strip import MAX_MARKS, alarm_strip
from ics_apps.reports.run_files import RunFiles, read_run
from ics_apps.runs import layout

HEADER = "step,epoch,rule,layer,value,threshold,sentence,remedy\n"


@pytest.fixture
def read(tmp_path):
    def run(text):
        problems = []
        path = tmp_path / layout.ALARMS
        path.write_text(text, encoding="utf-8")
        return read_alarms(path, problems), problems

    return run


def test_missing_file_is_not_an_empty_one(read, tmp_path):
    assert read_alarms(tmp_path / "none.csv", []) is None
    assert read(HEADER) == ((), [])


def test_alarms_are_sorted_by_step_with_values_that_are_not_finite_first(read):
    lines = '30,0,saturated,a,1,2,s,r\n20,0,dead_units,b,0.5,0.4,"b, c","do, this"\n20,0,nonfinite,c,nan,,s,r\n'
    alarms, problems = read(HEADER + lines)
    assert [(alarm.step, alarm.rule, alarm.layer) for alarm in alarms] == [
        (20, "nonfinite", "c"),
        (20, "dead_units", "b"),
        (30, "saturated", "a"),
    ]
    assert (alarms[1].value, alarms[1].threshold, alarms[1].sentence, alarms[1].remedy) == (
        0.5,
        0.4,
        "b, c",
        "do, this",
    )
    assert problems == []


def test_alarm_written_twice_by_a_resumed_run_counts_once_as_written_last(read):
    alarms, _ = read(HEADER + "20,0,r,a,1,2,old,x\n20,0,r,a,1,2,new,x\n")
    assert [alarm.sentence for alarm in alarms] == ["new"]


def test_what_cannot_be_read_is_named(read):
    alarms, problems = read(HEADER + "20,0,r,a,1,2,s,x\nx,0,r,a,1,2,s,x\n20,0\n30,0,r,a,1,2,s")
    assert [alarm.step for alarm in alarms] == [20]
    assert problems == [
        "The last line of _alarms.csv was cut off and is left out.",
        "2 lines of _alarms.csv could not be read and are left out.",
    ]


def test_line_of_a_full_file_is_a_note_and_no_alarm(read):
    alarms, problems = read(HEADER + "20,0,r,a,1,2,s,x\n30,0,file_full,,,,10 alarms are written.,y\n")
    assert len(alarms) == 1
    assert problems == ["_alarms.csv: 10 alarms are written."]


def test_run_without_the_file_says_that_nothing_was_watched(tmp_path):
    section = alarm_section(RunFiles(tmp_path))
    assert section.missing.startswith("Nothing was watched for alarms: monitor/_alarms.csv is missing.")


def test_run_with_an_empty_file_says_that_none_fired(tmp_path):
    assert alarm_section(RunFiles(tmp_path, alarms=())).missing == "The monitor watched this run, and no alarm fired."


def test_table_holds_step_rule_layer_sentence_and_remedy(make_watched):
    (table,) = alarm_section(read_run(make_watched())).tables
    assert table.rows[0] == (
        "120",
        "saturated",
        "net.decoder.1.act2",
        "net.decoder.1.act2 had 31 % of its values where tanh is flat at 3 samples in a row.",
        "Put a norm before it, or lower the learning rate.",
    )
    assert [row[0] for row in table.rows] == ["120", "180", "220", "220"]


def test_many_alarms_show_the_first_of_each_rule_and_fold_the_rest(tmp_path):
    alarms = tuple(Alarm(step, "rare" if step == 90 else "often", "a") for step in range(100))
    first, rest = alarm_section(RunFiles(tmp_path, alarms=alarms)).tables
    assert [row[0] for row in first.rows] == ["0", "1", "2", "3", "4", "5", "6", "90"]
    assert rest.fold == "All 100 alarms, by step"
    assert len(rest.rows) == 100


def test_strip_names_rules_in_the_order_in_which_they_fired_and_counts_layers():
    alarms = [Alarm(0, "z", "a"), Alarm(10, "b", "a"), Alarm(10, "b", "b"), Alarm(20, "b", "a")]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", alarm_strip(alarms, (0, 100)).svg)
    assert texts.index("z") < texts.index("b")
    assert "1 in 1 layer" in texts
    assert "3 in 2 layers" in texts


def test_strip_of_very_many_alarms_stays_small():
    alarms = [Alarm(step, "r", "a") for step in range(20_000)]
    assert alarm_strip(alarms, (0, 20_000)).svg.count("<use ") <= 2 * MAX_MARKS
    assert alarm_strip([], (0, 10)) is None


@pytest.mark.parametrize("ends", [(0, 0), (5, 3)])
def test_strip_of_a_single_step_can_be_drawn(ends):
    assert alarm_strip([Alarm(4, "$r$ & <b>", "a")], ends) is not None
