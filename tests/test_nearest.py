"""Misspelt names in errors."""

from __future__ import annotations

import pytest

from ics_apps.nearest import did_you_mean, nearest_name


@pytest.mark.parametrize(("name", "nearest"), [("gruop", "group"), ("group", "group"), ("zzz", None), ("", None)])
def test_the_name_most_like_it_is_found_if_one_is_like_it_at_all(name: str, nearest: str | None) -> None:
    assert nearest_name(name, ["batch", "group", "grouped"]) == nearest


def test_at_likeness_zero_any_name_will_do() -> None:
    assert nearest_name("zzz", ["batch"], likeness=0.0) == "batch"


def test_an_error_ends_with_the_name_or_with_a_full_stop() -> None:
    assert did_you_mean("btach", ["batch"]) == "; did you mean 'batch'?"
    assert did_you_mean("zzz", ["batch"]) == did_you_mean("zzz", []) == "."
