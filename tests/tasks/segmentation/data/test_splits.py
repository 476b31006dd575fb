"""Which way of splitting applies, and what the seeded draw promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


SUBJECTS = [Pair(f"sub-{s:02d}_{c}", Path(f"{s}{c}"), Path("m")) for s in range(7) for c in ("t1", "t2")]


@pytest.fixture
def by_subject(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset([pair.name for pair in SUBJECTS])


def test_folds_share_the_subjects_and_each_is_val_once(by_subject: Path) -> None:
    vals: list[str] = []
    for fold in range(3):
        problems = Problems(by_subject)
        split = find_split(by_subject, SplitRule(folds=3, fold=fold, subject=r"sub-\d+"), problems)
        parts = names(split)
        assert problems.found == []
        assert sorted(parts["train"] + parts["val"]) == sorted(pair.name for pair in SUBJECTS)
        assert not {name[:6] for name in parts["train"]} & {name[:6] for name in parts["val"]}
        assert len(parts["val"]) in {4, 6}  # 7 subjects of two cases in 3 folds
        vals += parts["val"]
    assert sorted(vals) == sorted(pair.name for pair in SUBJECTS)
    assert "; fold 2 of 3 by 7 subjects (seed 0): 10 train, 4 val, 0 test cases" in split.note


@given(seed=st.integers(0, 1000))
def test_a_draw_keeps_subjects_together(seed: int) -> None:
    rule = SplitRule(val_fraction=0.3, test_fraction=0.3, seed=seed, subject=r"^sub-(\d+)")
    parts = names(draw(SUBJECTS, rule))
    found = [{name[:6] for name in part} for part in parts.values()]
    assert all(found)
    assert sum(len(subjects) for subjects in found) == 7


def test_folds_leave_the_test_part_alone_and_take_subjects_from_the_table(make_dataset: Callable[..., Path]) -> None:
    root = make_dataset("abcdef")
    rows = [("a", "p", "train"), ("b", "p", "val"), ("c", "q", "train"), ("d", "q", "train"), ("e", "r", "test")]
    lines = [f"images/{s}.png,masks/{s}.png,{part},{subject}" for s, subject, part in rows]
    (root / "split.csv").write_text("\n".join(["image,mask,split,subject", *lines]))
    found = [names(find_split(root, SplitRule(folds=2, fold=fold), Problems(root))) for fold in (0, 1)]
    assert [parts["test"] for parts in found] == [["e"], ["e"]]
    assert sorted(parts["val"] for parts in found) == [["a", "b"], ["c", "d"]]


def test_too_many_folds_and_names_without_a_subject_are_named(make_dataset: Callable[..., Path]) -> None:
    problems = Problems(make_dataset("abc"))
    find_split(problems.root, SplitRule(folds=5), problems)
    assert problems.found[0][1] == "3 subjects are too few for 5 folds; lower folds"
    problems = Problems(problems.root)
    find_split(problems.root, SplitRule(subject="sub"), problems)
    assert ("images/a.png", "the pattern 'sub' (subject) finds nothing in its name") in problems.found


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"folds": 1}, "folds is 1; allowed are 2 and above"),
        ({"folds": 5, "fold": 5}, "fold is 5; allowed are 0 to 4"),
        ({"fold": 1}, "fold is 1; allowed are 0 unless folds is given"),
        ({"subject": "("}, "no regular expression"),
    ],
)
def test_rules_are_checked_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SplitRule(**options)
