from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.probes.activations.alarms import make_rules
from ics_apps.probes.activations.alarms.choice import RULE_NAMES


def test_all_thirteen_rules_are_the_default():
    assert tuple(rule.name for rule in make_rules()) == RULE_NAMES
    assert len(RULE_NAMES) == 13


def test_options_change_one_rule_and_keep_its_other_values():
    (rule,) = make_rules({"dead_units": {"threshold": 0.3}})
    assert (rule.threshold, rule.patience) == (0.3, 2)


def test_no_options_are_the_defaults():
    assert make_rules({"nonfinite": None}) == make_rules({"nonfinite": {}}) == make_rules(["nonfinite"])


def test_nothing_chosen_is_no_rule():
    assert make_rules([]) == ()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["dead_unit"], "no rule 'dead_unit'; did you mean 'dead_units'"),
        ({"dead_units": {"treshold": 0.3}}, "no option 'treshold'; did you mean 'threshold'"),
        ({"dead_units": {"patience": 0}}, "patience of rule 'dead_units' is 0; give a whole number, at least 1"),
        ({"dead_units": {"patience": 1.5}}, "is 1.5; give a whole number"),
        ({"dead_units": {"threshold": "much"}}, "is 'much'; give a number, at least 0"),
        ({"dead_units": 3}, "takes a mapping of options, not 3"),
    ],
)
def test_a_wrong_choice_says_what_is_right(choice, message):
    with pytest.raises(ValueError, match=message):
        make_rules(choice)


@pytest.mark.parametrize("rule", make_rules(), ids=lambda rule: rule.name)
def test_every_rule_says_what_it_means_and_what_to_try(rule):
    assert rule.meaning[0].islower()
    assert rule.remedy[0].isupper()
    assert rule.remedy.endswith(".")


def test_the_page_on_alarms_has_a_line_for_every_rule():
    page = Path(__file__).parents[4] / "docs" / "how-to" / "alarms.md"
    rows = [line.split("|")[1].strip(" `") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line]
    assert tuple(rows[2:]) == RULE_NAMES
