"""A split as a CSV with the columns image, mask, split (train, val, test or train+val) and, if wanted, subject.

Further columns may say which rows count; see `RowRule`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ics_apps.tasks.segmentation.data.checks import Problems, nearest, some
from ics_apps.tasks.segmentation.data.dicom import is_series
from ics_apps.tasks.segmentation.data.formats import stem_of
from ics_apps.tasks.segmentation.data.pairing import Layout, Pair

PARTS: Final = ("train", "val", "test")
COLUMNS: Final = ("image", "mask", "split")


@dataclass(frozen=True, slots=True)
class RowRule:
    """Which rows of a table count, and which part they are in.

    Args:
        rows: Column -> value: only rows that hold these values count.
        parts: Stem of an image -> part (train, val, test, train+val), in place of what the table says.

    Raises:
        ValueError: A part that is none.
    """

    rows: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stem, part in self.parts.items():
            if not known_part(part):
                raise ValueError(f"parts puts {stem} into {part!r}; allowed are {', '.join(PARTS)} and train+val.")


def known_part(part: str) -> bool:
    """Whether it names a part, or both train and val.

    Example:
        >>> known_part("train+val"), known_part("gm")
        (True, False)
    """
    return part in PARTS or part == "train+val"


def read_manifest(
    root: Path, table: Path, problems: Problems, rule: RowRule | None = None, layout: Layout | None = None
) -> dict[str, list[Pair]]:
    """The pairs of each part, in the order of the rows.

    Args:
        root: Paths in the table are relative to it and stay below it.
        table: The CSV, comma or semicolon.
        problems: Where faults go, named by their row (the header is row 1).
        rule: Which rows count; None: all.
        layout: Where a case has several files, a row names the first of them and this the others.
    """
    rule, layout = rule or RowRule(), layout or Layout()
    parts: dict[str, list[Pair]] = {part: [] for part in PARTS}
    rows = _chosen(_rows(table, problems), table, rule, problems)
    before = len(problems.found)
    seen: dict[Path, tuple[str, int]] = {}
    for number, row in rows:
        cells = {key: (row.get(key) or "").strip() for key in (*COLUMNS, "subject")}
        where = f"{problems.name(table)} row {number}"
        part = rule.parts.get(stem_of(Path(cells["image"])), cells["split"])
        if not known_part(part):
            problems.add(where, f"split is {part!r}; allowed are {', '.join(PARTS)}")
            continue
        image = _listed_file(root, cells["image"], where, problems)
        mask = _listed_file(root, cells["mask"], where, problems)
        if image is None or mask is None:
            continue
        if image in seen:
            other, first = seen[image]
            problems.add(where, f"{cells['image']} is in {other} by row {first} already; an image is listed once")
            continue
        seen[image] = (part, number)
        pair = _with_more(Pair(stem_of(image), image, mask, subject=cells["subject"]), root, layout, where, problems)
        for one in part.split("+"):
            parts[one].append(pair)
    for pairs in parts.values():
        _unique_names(pairs, problems)
    unused = sorted(set(rule.parts) - {stem_of(image) for image in seen})
    if unused and len(problems.found) == before:
        problems.add(table, f"parts names {some(unused)}, but no row that counts has such an image")
    if rows and not parts["train"] and len(problems.found) == before:
        problems.add(table, "no row has split = train")
    return parts


def _chosen(
    rows: list[tuple[int, dict[str, str]]], table: Path, rule: RowRule, problems: Problems
) -> list[tuple[int, dict[str, str]]]:
    if not rows:
        return rows
    missing = [column for column in rule.rows if column not in rows[0][1]]
    if missing:
        problems.add(table, f"no column {', '.join(missing)} (rows); it has {some(list(rows[0][1]))}")
        return []
    found = [
        (number, row)
        for number, row in rows
        if all((row.get(column) or "").strip() == str(value) for column, value in rule.rows.items())
    ]
    if not found:
        problems.add(table, f"no row has {' and '.join(f'{c} = {v}' for c, v in rule.rows.items())}")
    return found


def _with_more(pair: Pair, root: Path, layout: Layout, where: str, problems: Problems) -> Pair:
    """The pair with the files of its further channels and labels, which lie beside the first and are named like it."""
    if layout.channel_files:
        first, *others = layout.channel_files
        stem, suffix = pair.name, pair.image.name[len(pair.name) :]
        if not stem.endswith(first):
            problems.add(where, f"{pair.image.name} does not end with {first}, the first of channel_files")
            return pair
        name = stem.removesuffix(first)
        images = [pair.image.parent / f"{name}{end}{suffix}" for end in others]
        pair = replace(pair, name=name, more_images=tuple(images))
    folders = [pair.mask.parent.parent / folder for folder in layout.masks[1:]]
    pair = replace(pair, more_masks=tuple(folder / pair.mask.name for folder in folders))
    for path in (*pair.more_images, *pair.more_masks):
        _listed_file(root, path.relative_to(root).as_posix(), where, problems)
    return pair


def _rows(table: Path, problems: Problems) -> list[tuple[int, dict[str, str]]]:
    if not table.is_file():
        others = sorted(path.name for path in table.parent.glob("*.csv")) if table.parent.is_dir() else []
        hint = f"; the folder holds {some(others)}" if others else ""
        problems.add(table, f"no such file, and split is neither 'folders' nor 'seeded'{hint}")
        return []
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.add(table, f"cannot be read as UTF-8: {error}")
        return []
    head = text.split("\n", 1)[0]
    reader = csv.DictReader(text.splitlines(), delimiter=";" if head.count(";") > head.count(",") else ",")
    columns = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        problems.add(table, f"no column {', '.join(missing)}; it has {some(columns) if columns else 'none'}")
        return []
    reader.fieldnames = columns
    rows = [(reader.line_num, row) for row in reader]
    if not rows:
        problems.add(table, "no rows below the header")
    return rows


def _listed_file(root: Path, cell: str, where: str, problems: Problems) -> Path | None:
    base = root.resolve()
    path = (base / cell).resolve()
    if not cell or path == base:
        problems.add(where, "an empty path")
        return None
    # Links are resolved first, so that neither `..` nor a link leads out of the dataset.
    if not path.is_relative_to(base):
        problems.add(where, f"{cell} lies outside of {root}; a split may name files below its root only")
        return None
    if not path.is_file() and not is_series(path):
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, names)
        problems.add(where, f"{cell} does not exist" + (f"; nearest is {close}" if close else ""))
        return None
    return root / path.relative_to(base)


def _unique_names(pairs: Sequence[Pair], problems: Problems) -> None:
    times = Counter(pair.name for pair in pairs)
    for pair in pairs:
        if times[pair.name] > 1:
            problems.add(
                pair.image, f"{times[pair.name]} images of one part have the stem {pair.name!r}; rename all but one"
            )
