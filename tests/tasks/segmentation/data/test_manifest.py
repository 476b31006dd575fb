"""A split in a CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ics_apps.tasks.segmentation.data.checks import Problems
from ics_apps.tasks.segmentation.data.manifest import RowRule, read_manifest
from ics_apps.tasks.segmentation.data.pairing import Layout

HEAD = "image,mask,split\n"


def read(root: Path, text: str, encoding: str = "utf-8") -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    table = root / "split.csv"
    table.write_text(text, encoding=encoding)
    problems = Problems(root)
    parts = read_manifest(root, table, problems)
    return {part: [pair.name for pair in pairs] for part, pairs in parts.items()}, problems.found


@pytest.fixture
def root(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(["a", "b", "c"])


def row(stem: str, part: str) -> str:
    return f"images/{stem}.png,masks/{stem}.png,{part}\n"


def test_rows_give_the_parts(root: Path) -> None:
    parts, problems = read(root, HEAD + row("a", "train") + row("c", "test") + row("b", "val"))
    assert parts == {"train": ["a"], "val": ["b"], "test": ["c"]}
    assert problems == []


def test_excel_files_are_read(root: Path) -> None:
    text = "name;image;mask;split\r\nx;images/a.png;masks/a.png;train\r\n"
    parts, problems = read(root, text, encoding="utf-8-sig")
    assert (parts["train"], problems) == (["a"], [])


def test_missing_column_is_named_with_those_there_are(root: Path) -> None:
    assert read(root, "image,label,split\n")[1] == [("split.csv", "no column mask; it has image, label, split")]


def test_header_alone_is_refused(root: Path) -> None:
    assert read(root, HEAD)[1] == [("split.csv", "no rows below the header")]


def test_unknown_part_is_named_by_its_row(root: Path) -> None:
    problems = read(root, HEAD + row("a", "train") + row("b", "gm"))[1]
    assert problems == [("split.csv row 3", "split is 'gm'; allowed are train, val, test")]


def test_listed_file_that_is_missing_is_named_with_the_nearest(root: Path) -> None:
    problems = read(root, HEAD + "images/aa.png,masks/a.png,train\n")[1]
    assert problems == [("split.csv row 2", "images/aa.png does not exist; nearest is a.png")]


@pytest.mark.parametrize("cell", ["../../secret.png", "/etc/hostname", "images/../../x.png"])
def test_path_outside_the_root_is_refused(root: Path, cell: str) -> None:
    problems = read(root, HEAD + f"{cell},masks/a.png,train\n")[1]
    reason = f"{cell} lies outside of {root}; a split may name files below its root only"
    assert problems == [("split.csv row 2", reason)]


def test_link_that_leads_outside_is_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes((root / "images" / "a.png").read_bytes())
    (root / "images" / "link.png").symlink_to(outside)
    problems = read(root, HEAD + "images/link.png,masks/a.png,train\n")[1]
    assert len(problems) == 1
    assert problems[0][1].startswith("images/link.png lies outside of")


def test_image_in_two_parts_is_refused(root: Path) -> None:
    problems = read(root, HEAD + row("a", "train") + row("a", "val"))[1]
    assert problems == [
        ("split.csv row 3", "images/a.png is in train by row 2 already; an image is listed once"),
    ]


def test_two_images_of_one_part_with_one_stem_are_refused(root: Path) -> None:
    (root / "more").mkdir()
    (root / "more" / "a.png").write_bytes((root / "images" / "a.png").read_bytes())
    problems = read(root, HEAD + row("a", "train") + "more/a.png,masks/b.png,train\n")[1]
    reason = "2 images of one part have the stem 'a'; rename all but one"
    assert problems == [("images/a.png", reason), ("more/a.png", reason)]


def test_no_training_row_is_refused(root: Path) -> None:
    assert read(root, HEAD + row("a", "val"))[1] == [("split.csv", "no row has split = train")]


def test_bytes_that_are_no_utf8_are_refused(root: Path) -> None:
    problems = read(root, HEAD + "images/ä.png,masks/a.png,train\n", encoding="latin-1")[1]
    assert len(problems) == 1
    assert problems[0][1].startswith("cannot be read as UTF-8")


def read_by(root: Path, text: str, rule: RowRule, layout: Layout | None = None) -> tuple[dict[str, list[str]], Any]:
    (root / "index.csv").write_text(text)
    problems = Problems(root)
    parts = read_manifest(root, root / "index.csv", problems, rule, layout)
    return {part: [pair.name for pair in pairs] for part, pairs in parts.items()}, problems.found


INDEX = (
    "image,mask,split,target\nimages/a.png,masks/a.png,train,cord\nimages/a.png,masks/b.png,gm,grey\n"
    "images/b.png,masks/b.png,test,cord\nimages/c.png,masks/c.png,test,cord\n"
)


def test_only_rows_that_hold_the_wanted_values_count_and_parts_may_be_others(root: Path) -> None:
    rule = RowRule({"target": "cord"}, {"b": "train+val"})
    assert read_by(root, INDEX, rule) == ({"train": ["a", "b"], "val": ["b"], "test": ["c"]}, [])


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (RowRule({"organ": "cord"}), "no column organ (rows); it has image, mask, split, target"),
        (RowRule({"target": "liver"}), "no row has target = liver"),
        (RowRule({"target": "cord"}, {"x": "val"}), "parts names x, but no row that counts has such an image"),
    ],
)
def test_rules_that_fit_no_row_are_named(root: Path, rule: RowRule, reason: str) -> None:
    assert read_by(root, INDEX, rule)[1] == [("index.csv", reason)]


def test_an_unknown_part_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"parts puts a into 'gm'; allowed are train, val, test and train\+val"):
        RowRule({}, {"a": "gm"})


def test_files_of_further_channels_and_labels_lie_beside_those_of_the_row(root: Path, png: Any) -> None:
    for name in ("images/s_t1.png", "images/s_t2.png", "masks/s.png", "lesions/s.png"):
        png(root / name, np.zeros((4, 4), np.uint8))
    text = "image,mask,split\nimages/s_t1.png,masks/s.png,train\n"
    layout = Layout(masks=("masks", "lesions"), channel_files=("_t1", "_t2"))
    assert read_by(root, text, RowRule(), layout) == ({"train": ["s"], "val": [], "test": []}, [])
    (root / "images" / "s_t2.png").unlink()
    assert read_by(root, text, RowRule(), layout)[1][0][1].startswith("images/s_t2.png does not exist")
