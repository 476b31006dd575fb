"""Which way of splitting applies, and what the seeded draw promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.tasks.segmentation.data.checks import Problems
from ics_apps.tasks.segmentation.data.pairing import Pair
from ics_apps.tasks.segmentation.data.splits import Split, SplitRule, draw, find_split


def pairs(number: int) -> list[Pair]:
    return [Pair(f"case_{i:03d}", Path(f"images/{i}.png"), Path(f"masks/{i}.png")) for i in range(number)]


def names(split: Split) -> dict[str, list[str]]:
    return {part: [pair.name for pair in getattr(split, part)] for part in ("train", "val", "test")}


@given(number=st.integers(2, 60), val=st.floats(0.01, 0.6), test=st.floats(0.0, 0.39), seed=st.integers(0, 2**31))
def test_draw_gives_each_case_to_one_part_and_leaves_none_empty(
    number: int, val: float, test: float, seed: int
) -> None:
    parts = names(draw(pairs(number), SplitRule(val_fraction=val, test_fraction=test, seed=seed)))
    assert sorted(name for part in parts.values() for name in part) == [pair.name for pair in pairs(number)]
    assert parts["train"]
    assert parts["val"]
    assert len(parts["val"]) <= max(1, number * val + 0.5)


@given(number=st.integers(10, 60), seed=st.integers(0, 1000))
def test_a_further_file_moves_at_most_one_case_a_cut(number: int, seed: int) -> None:
    rule = SplitRule(val_fraction=0.2, test_fraction=0.2, seed=seed)
    old, new = draw(pairs(number), rule), draw(pairs(number + 1), rule)
    old_parts = {pair.name: part for part in ("train", "val", "test") for pair in getattr(old, part)}
    new_parts = {pair.name: part for part in ("train", "val", "test") for pair in getattr(new, part)}
    moved = [(old_parts[name], new_parts[name]) for name in old_parts if old_parts[name] != new_parts[name]]
    assert len(moved) <= 2
    assert ("val", "test") not in moved
    assert ("test", "val") not in moved


def test_draw_is_the_same_for_the_same_seed_in_any_order_of_files() -> None:
    rule = SplitRule(seed=3)
    assert names(draw(pairs(20), rule)) == names(draw(pairs(20)[::-1], rule))
    assert names(draw(pairs(20), rule)) != names(draw(pairs(20), SplitRule(seed=4)))


def test_draw_is_the_one_documented() -> None:
    # By hand: sorted by sha256("0/a") ... the first of five is val.
    assert names(draw([Pair(s, Path(s), Path(s)) for s in "abcde"], SplitRule())) == {
        "train": ["a", "b", "d", "e"],
        "val": ["c"],
        "test": [],
    }


def test_without_table_and_folders_the_draw_applies(make_dataset: Callable[..., Path]) -> None:
    problems = Problems(make_dataset("abcde"))
    split = find_split(problems.root, SplitRule(), problems)
    assert problems.found == []
    assert split.note == (
        "seeded draw (seed 0, val_fraction 0.2, test_fraction 0): "
        "4 train, 1 val, 0 test cases; no test part, so test uses val"
    )


def test_split_csv_in_the_root_is_found_by_itself_and_seeded_overrules_it(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset("ab")
    lines = ["image,mask,split", "images/a.png,masks/a.png,val", "images/b.png,masks/b.png,train"]
    (root / "split.csv").write_text("\n".join(lines))
    problems = Problems(root)
    split = find_split(root, SplitRule(), problems)
    assert names(split) == {"train": ["b"], "val": ["a"], "test": []}
    assert split.note == "split.csv: 1 train, 1 val, 0 test cases; no test part, so test uses val"
    assert find_split(root, SplitRule(split="seeded"), problems).note.startswith("seeded draw")


@pytest.mark.parametrize("absolute", [True, False])
def test_table_of_any_name_may_be_given(make_dataset: Callable[..., Path], absolute: bool) -> None:
    root = make_dataset("ab")
    (root / "mine.csv").write_text("image,mask,split\nimages/a.png,masks/a.png,val\nimages/b.png,masks/b.png,train\n")
    path = str(root / "mine.csv") if absolute else "mine.csv"
    split = find_split(root, SplitRule(split=path), Problems(root))
    assert split.note.startswith("mine.csv: 1 train, 1 val")


def test_table_that_is_missing_is_named(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset("ab")
    (root / "folds.csv").write_text("x")
    problems = Problems(root)
    find_split(root, SplitRule(split="fold.csv"), problems)
    reason = "no such file, and split is neither 'folders' nor 'seeded'; the folder holds folds.csv"
    assert problems.found == [("fold.csv", reason)]


def test_sub_folders_are_the_parts(make_dataset: Callable[..., Path]) -> None:
    make_dataset("ab", "cells/train")
    make_dataset("c", "cells/val")
    root = make_dataset("d", "cells/test").parent
    problems = Problems(root)
    split = find_split(root, SplitRule(), problems)
    assert problems.found == []
    assert names(split) == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert split.note == "sub-folders: 2 train, 1 val, 1 test cases"


def test_missing_val_folder_is_drawn_from_train_and_said(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset("abcde", "cells/train").parent
    split = find_split(root, SplitRule(), Problems(root))
    assert (len(split.train), len(split.val)) == (4, 1)
    assert "; no val part, so 1 of the train cases were drawn for it (seed 0); no test part" in split.note


def test_missing_train_folder_is_named(make_dataset: Callable[..., Path]) -> None:
    problems = Problems(make_dataset("ab"))
    find_split(problems.root, SplitRule(split="folders"), problems)
    assert problems.found == [("train", "no such folder; cells/ holds images/, masks/")]


def test_single_case_is_refused(make_dataset: Callable[..., Path]) -> None:
    problems = Problems(make_dataset("a"))
    find_split(problems.root, SplitRule(), problems)
    reason = "a single case cannot be both trained and validated on; 2 or more are needed"
    assert problems.found == [("images/a.png", reason)]
