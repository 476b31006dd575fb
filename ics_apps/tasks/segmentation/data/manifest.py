"""A split as a CSV with the columns image, mask, split (train, val or test); further columns are ignored."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ics_apps.tasks.segmentation.data.checks import Problems, nearest, some
from ics_apps.tasks.segmentation.data.formats import stem_of
from ics_apps.tasks.segmentation.data.pairing import Pair

PARTS: Final = ("train", "val", "test")
COLUMNS: Final = ("image", "mask", "split")


def read_manifest(root: Path, table: Path, problems: Problems) -> dict[str, list[Pair]]:
    """The pairs of each part, in the order of the rows.

    Args:
        root: Paths in the table are relative to it and stay below it.
        table: The CSV, comma or semicolon.
        problems: Where faults go, named by their row (the header is row 1).
    """
    parts: dict[str, list[Pair]] = {part: [] for part in PARTS}
    rows = _rows(table, problems)
    before = len(problems.found)
    seen: dict[Path, tuple[str, int]] = {}
    for number, row in rows:
        cells = {key: (row.get(key) or "").strip() for key in COLUMNS}
        where = f"{problems.name(table)} row {number}"
        part = cells["split"]
        if part not in PARTS:
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
        parts[part].append(Pair(stem_of(image), image, mask))
    for pairs in parts.values():
        _unique_names(pairs, problems)
    if rows and not parts["train"] and len(problems.found) == before:
        problems.add(table, "no row has split = train")
    return parts


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
    if not path.is_file():
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
