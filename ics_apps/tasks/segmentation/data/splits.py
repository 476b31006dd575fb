"""Which part of the dataset each case is in: by a CSV, by sub-folders `train/ val/ test/`, or by a seeded draw.

Folds split train and val anew, whichever of these they come from. Cases of one subject stay together in every draw.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ics_apps.tasks.segmentation.data.checks import Problems
from ics_apps.tasks.segmentation.data.manifest import RowRule, read_manifest
from ics_apps.tasks.segmentation.data.pairing import Layout, Pair, find_pairs, missing_folder

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
    r"""How to find and split the cases.

    Args:
        layout: The folders of images and masks.
        split: Path of a CSV, "folders", "seeded", or None for the first that applies.
        val_fraction: Share of the subjects that a seeded draw gives to val, 0 < f < 1.
        test_fraction: Share that it gives to test, 0 <= f < 1.
        seed: Seed of the draw and of the folds.
        folds: Number of folds, 2 or more; None: no folds.
        fold: Which fold is val, 0 <= fold < folds.
        subject: Regular expression that finds the subject in a case's name (its first group, or all it matches), such
            as `sub-\w+`; None: the column `subject` of the CSV, or each case is a subject.
        rows: Which rows of the CSV count, and which part they are in.

    Raises:
        ValueError: A number outside its range, or an expression that is none.
    """

    layout: Layout = field(default_factory=Layout)
    split: str | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0
    folds: int | None = None
    fold: int = 0
    subject: str | None = None
    rows: RowRule = field(default_factory=RowRule)

    def __post_init__(self) -> None:
        if (
            not 0 < self.val_fraction < 1
            or not 0 <= self.test_fraction < 1
            or self.val_fraction + self.test_fraction >= 1
        ):
            raise ValueError(
                f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}; "
                "allowed are 0 < val_fraction, 0 <= test_fraction and a sum below 1."
            )
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds is {self.folds}; allowed are 2 and above.")
        if not 0 <= self.fold < (self.folds or 1):
            most = f"0 to {self.folds - 1}" if self.folds else "0 unless folds is given"
            raise ValueError(f"fold is {self.fold}; allowed are {most}.")
        try:
            re.compile(self.subject or "")
        except re.error as error:
            raise ValueError(f"subject is {self.subject!r}, no regular expression: {error}.") from error


def find_split(root: Path, rule: SplitRule, problems: Problems) -> Split:
    """Find all cases below `root` and their parts; what is wrong goes to `problems`."""
    table = _table(root, rule)
    before = len(problems.found)
    if table is not None:
        split = Split(**read_manifest(root, table, problems, rule.rows, rule.layout), note=table.name)
    elif rule.split == "folders" or (rule.split is None and (root / "train").is_dir()):
        split = _from_folders(root, rule, problems)
    else:
        split = draw(find_pairs(root, rule.layout, problems), rule, problems)
    if rule.folds is not None and len(problems.found) == before:
        _fold(split, rule, problems)
    _complete(split, rule, problems)
    if split.train and not split.val and len(problems.found) == before:
        problems.add(
            split.train[0].image, "a single case cannot be both trained and validated on; 2 or more are needed"
        )
    return split


def is_labelled(root: Path, rule: SplitRule) -> bool:
    """Whether masks, or a table that names them, are there."""
    folders = [below / name for name in rule.layout.masks for below in (root, root / "train")]
    return rule.split is not None or (root / SPLIT_FILE).is_file() or any(folder.is_dir() for folder in folders)


def predict_folder(root: Path, given: Path | None, images: str) -> Path:
    """Where the images to predict are: in the given folder, else in root or its sub-folder test or val.

    Args:
        root: The dataset's folder.
        given: The folder asked for, which may have a sub-folder of images.
        images: Name of the folder of images.
    """
    if given is not None:
        return given / images if (given / images).is_dir() else given
    candidates = [root / images, *[root / part / images for part in ("test", "val")]]
    return next((folder for folder in candidates if folder.is_dir()), root)


def draw(pairs: Sequence[Pair], rule: SplitRule, problems: Problems | None = None) -> Split:
    """Split by the order of a hash of seed and subject: the first are val, the last are test, train lies between.

    The counts are the rounded fractions, with at least one val subject and, for two or more, one of train. A further
    subject moves at most those next to the two cuts.
    """
    ranked = _ranked(pairs, rule, problems)
    vals = min(max(1, round(len(ranked) * rule.val_fraction)), max(0, len(ranked) - 1))
    tests = min(round(len(ranked) * rule.test_fraction), max(0, len(ranked) - vals - 1))
    cut = len(ranked) - tests
    note = f"seeded draw (seed {rule.seed}, val_fraction {rule.val_fraction:g}, test_fraction {rule.test_fraction:g})"
    return Split(_by_name(ranked[vals:cut]), _by_name(ranked[:vals]), _by_name(ranked[cut:]), note)


def _fold(split: Split, rule: SplitRule, problems: Problems) -> None:
    """Val becomes one of equally long stretches of the ranked subjects of train and val; test stays."""
    ranked = _ranked(list({pair.name: pair for pair in [*split.train, *split.val]}.values()), rule, problems)
    folds = rule.folds or 1
    if len(ranked) < folds:
        problems.add(problems.root, f"{len(ranked)} subjects are too few for {folds} folds; lower folds")
        return
    start, end = (round(len(ranked) * k / folds) for k in (rule.fold, rule.fold + 1))
    split.train, split.val = _by_name([*ranked[:start], *ranked[end:]]), _by_name(ranked[start:end])
    split.note += f"; fold {rule.fold} of {folds} by {len(ranked)} subjects (seed {rule.seed})"


def _ranked(pairs: Sequence[Pair], rule: SplitRule, problems: Problems | None) -> list[list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        subject = pair.subject or pair.name
        if rule.subject is not None:
            found = re.search(rule.subject, pair.name)
            if found is None and problems is not None:
                problems.add(pair.image, f"the pattern {rule.subject!r} (subject) finds nothing in its name")
            subject = pair.name if found is None else next((g for g in found.groups() if g), found.group())
        groups.setdefault(subject, []).append(pair)
    ranks = sorted(groups, key=lambda subject: hashlib.sha256(f"{rule.seed}/{subject}".encode()).digest())
    return [groups[subject] for subject in ranks]


def _table(root: Path, rule: SplitRule) -> Path | None:
    if rule.split is None:
        return root / SPLIT_FILE if (root / SPLIT_FILE).is_file() else None
    return None if rule.split in {"folders", "seeded"} else root / rule.split


def _from_folders(root: Path, rule: SplitRule, problems: Problems) -> Split:
    if not (root / "train").is_dir():
        problems.add(root / "train", missing_folder(root / "train"))
        return Split(note="sub-folders")
    split = Split(find_pairs(root / "train", rule.layout, problems), note="sub-folders")
    for part in ("val", "test"):
        if (root / part).is_dir():
            setattr(split, part, find_pairs(root / part, rule.layout, problems))
    return split


def _complete(split: Split, rule: SplitRule, problems: Problems) -> None:
    """Draw a missing val part from train, and put the counts and what was missing into the note."""
    extra = ""
    if split.train and not split.val:
        drawn = draw(split.train, rule, problems)
        split.train, split.val = sorted([*drawn.train, *drawn.test], key=lambda pair: pair.name), drawn.val
        extra = f"; no val part, so {len(split.val)} of the train cases were drawn for it (seed {rule.seed})"
    both = sorted({pair.name for pair in split.train} & {pair.name for pair in split.val})
    if both:
        extra += f"; {', '.join(both)} in train and val, so the figures of val measure fit"
    if not split.test:
        extra += "; no test part, so test uses val"
    split.note += f": {len(split.train)} train, {len(split.val)} val, {len(split.test)} test cases{extra}"


def _by_name(groups: Sequence[Sequence[Pair]]) -> list[Pair]:
    return sorted((pair for group in groups for pair in group), key=lambda pair: pair.name)
