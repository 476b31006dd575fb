"""A split in a CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ics_apps.tasks.segmentation.data.checks import Problems
from ics_apps.tasks.segmentation.data.manifest import read_manifest

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
