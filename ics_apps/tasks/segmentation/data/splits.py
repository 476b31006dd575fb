"""Which part of the dataset each pair is in: by a CSV, by sub-folders `train/ val/ test/`, or by a seeded draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ics_apps.tasks.segmentation.data.checks import Problems
from ics_apps.tasks.segmentation.data.manifest import read_manifest
from ics_apps.tasks.segmentation.data.pairing import Pair, find_pairs, missing_folder

SPLIT_FILE: Final = "split.csv"


@dataclass(slots=True)
class Split:
    """The pairs of each part and one line that says how they came about."""

    train: list[Pair] = field(default_factory=list)
    val: list[Pair] = field(default_factory=list)
    test: list[Pair] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How to find and split the cases.

    Args:
        images: Name of the folder of images.
        masks: Name of the folder of masks.
        split: Path of a CSV, "folders", "seeded", or None for the first that applies.
        val_fraction: Share of the cases that a seeded draw gives to val, 0 < f < 1.
        test_fraction: Share that it gives to test, 0 <= f < 1.
        seed: Seed of the draw.
    """

    images: str = "images"
    masks: str = "masks"
    split: str | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0


def find_split(root: Path, rule: SplitRule, problems: Problems) -> Split:
    """Find all cases below `root` and their parts; what is wrong goes to `problems`."""
    table = _table(root, rule)
    if table is not None:
        split = Split(**read_manifest(root, table, problems), note=table.name)
    elif rule.split == "folders" or (rule.split is None and (root / "train").is_dir()):
        split = _from_folders(root, rule, problems)
    else:
        split = draw(find_pairs(root, rule.images, rule.masks, problems), rule)
    _complete(split, rule)
    if split.train and not split.val:
        problems.add(
            split.train[0].image, "a single case cannot be both trained and validated on; 2 or more are needed"
        )
    return split


def draw(pairs: Sequence[Pair], rule: SplitRule) -> Split:
    """Split by the order of a hash of seed and stem: the first are val, the last are test, train lies between.

    The counts are the rounded fractions, with at least one val case and, for two or more pairs, one train case. A
    further pair moves at most the cases next to the two cuts.
    """
    ranked = sorted(pairs, key=lambda pair: hashlib.sha256(f"{rule.seed}/{pair.name}".encode()).digest())
    vals = min(max(1, round(len(ranked) * rule.val_fraction)), max(0, len(ranked) - 1))
    tests = min(round(len(ranked) * rule.test_fraction), max(0, len(ranked) - vals - 1))
    cut = len(ranked) - tests
    note = f"seeded draw (seed {rule.seed}, val_fraction {rule.val_fraction:g}, test_fraction {rule.test_fraction:g})"
    return Split(_by_name(ranked[vals:cut]), _by_name(ranked[:vals]), _by_name(ranked[cut:]), note)


def _table(root: Path, rule: SplitRule) -> Path | None:
    if rule.split is None:
        return root / SPLIT_FILE if (root / SPLIT_FILE).is_file() else None
    return None if rule.split in {"folders", "seeded"} else root / rule.split


def _from_folders(root: Path, rule: SplitRule, problems: Problems) -> Split:
    if not (root / "train").is_dir():
        problems.add(root / "train", missing_folder(root / "train"))
        return Split(note="sub-folders")
    split = Split(find_pairs(root / "train", rule.images, rule.masks, problems), note="sub-folders")
    for part in ("val", "test"):
        if (root / part).is_dir():
            setattr(split, part, find_pairs(root / part, rule.images, rule.masks, problems))
    return split


def _complete(split: Split, rule: SplitRule) -> None:
    """Draw a missing val part from train, and put the counts and what was missing into the note."""
    extra = ""
    if split.train and not split.val:
        drawn = draw(split.train, rule)
        split.train, split.val = _by_name([*drawn.train, *drawn.test]), drawn.val
        extra = f"; no val part, so {len(split.val)} of the train cases were drawn for it (seed {rule.seed})"
    if not split.test:
        extra += "; no test part, so test uses val"
    split.note += f": {len(split.train)} train, {len(split.val)} val, {len(split.test)} test cases{extra}"


def _by_name(pairs: Sequence[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: pair.name)
