"""From pairs of files to checked cases: every file is read once before training, and each fault is noted.

Cases are as in their files here; `preparation` brings them to the grid and the intensities that the net sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ics_apps.tasks.segmentation.data.cases import Case
from ics_apps.tasks.segmentation.data.checks import Problems, check_alike, check_finite, check_pair
from ics_apps.tasks.segmentation.data.classes import LabelMap, LabelNames, classes_from_values, value_counts
from ics_apps.tasks.segmentation.data.formats import LOSSY_SUFFIXES, read_images, read_masks, suffix_of
from ics_apps.tasks.segmentation.data.grid import Grid, align_mask
from ics_apps.tasks.segmentation.data.intensity import moments
from ics_apps.tasks.segmentation.data.loaders import report_fractions, report_labels
from ics_apps.tasks.segmentation.data.pairing import Pair
from ics_apps.tasks.segmentation.data.volume import FileFaultError, Volume


@dataclass(slots=True)
class ReadCase:
    """A case as read: `values` is the mask with the values of its file, None if it is not kept in memory.

    `counts` has the voxels of each value; of labels that may overlap, those of each label by its number.
    """

    case: Case
    channels: int
    values: NDArray[Any] | None
    counts: dict[int, int]


class CaseReader:
    """Reads and checks cases, and keeps their arrays in memory until the limit is reached.

    Args:
        problems: Where faults go.
        normalize: A name of `intensity.NORMALIZE`, or one a channel.
        max_voxels: Largest number of values in a file.
        cache_bytes: Memory for the arrays of all cases together; later cases are read anew at each use.
        labels: Labels that may overlap; None: a mask holds one class a voxel.
    """

    def __init__(
        self,
        problems: Problems,
        normalize: str | Sequence[str],
        max_voxels: int,
        cache_bytes: int,
        labels: LabelNames | None = None,
    ) -> None:
        self.problems = problems
        self.normalize = normalize
        self.max_voxels = max_voxels
        self.free_bytes = cache_bytes
        self.labels = labels

    def read_pair(self, pair: Pair) -> ReadCase | None:
        """An image with its mask; None if there is a fault."""
        image = self._image([pair.image, *pair.more_images])
        mask = self._mask([pair.mask, *pair.more_masks])
        if image is None or mask is None:
            return None
        mask = align_mask(mask, image.values.shape[1:], image.affine)
        fault = check_pair(image, mask)
        if fault:
            self.problems.add(pair.mask, fault)
            return None
        read = self._read_case(pair.name, [pair.image, *pair.more_images], image, mask.values)
        if read is not None:
            read.case.mask_path, read.case.more_masks = pair.mask, pair.more_masks
            if self.labels is None:
                read.counts = value_counts(mask.values)
            else:
                read.counts = {i: int(np.count_nonzero(label)) for i, label in enumerate(mask.values)}
        return read

    def read_unlabelled(self, name: str, paths: Sequence[Path]) -> ReadCase | None:
        """An image without a mask; None if there is a fault."""
        image = self._image(paths)
        return None if image is None else self._read_case(name, paths, image, None)

    def _image(self, paths: Sequence[Path]) -> Volume | None:
        try:
            image = read_images(paths, self.max_voxels)
        except FileFaultError as fault:
            self.problems.add(paths[0], str(fault))
            return None
        reason = check_finite(image.values) or _affine_fault(image)
        if reason:
            self.problems.add(paths[0], reason)
            return None
        return image

    def _mask(self, paths: Sequence[Path]) -> Volume | None:
        try:
            mask = read_masks(paths, self.labels is not None, self.max_voxels)
            if self.labels is not None and len(mask.values) != len(self.labels.names):
                raise FileFaultError(
                    f"its masks have {len(mask.values)} channels, but the {self.labels.describe()} are named"
                )
        except FileFaultError as fault:
            self.problems.add(paths[0], str(fault))
            return None
        return mask

    def _read_case(self, name: str, paths: Sequence[Path], image: Volume, mask: NDArray[Any] | None) -> ReadCase | None:
        try:
            mean, std = moments(image.values, self.normalize)
        except ValueError as fault:
            self.problems.add(paths[0], str(fault))
            return None
        shape = image.values.shape[1:]
        case = Case(name, shape, image.spacing, mean, std, image_path=paths[0], more_images=tuple(paths[1:]))
        case.grid = Grid(shape, image.spacing, image.affine)
        size = image.values.nbytes + (0 if mask is None else mask.nbytes)
        keep = size <= self.free_bytes
        if keep:
            self.free_bytes -= size
            case.image = image.values
        return ReadCase(case, len(image.values), mask if keep else None, {})


def agree(
    reads: Sequence[ReadCase], dim: int | None, channels: int | None, problems: Problems
) -> tuple[int | None, int | None]:
    """Hold all cases to one number of axes and of channels; see `check_alike`."""
    files = [Path(str(read.case.image_path)) for read in reads]
    found_dim = check_alike(files, [len(read.case.shape) for read in reads], "axes of space", dim, problems)
    found_channels = check_alike(files, [read.channels for read in reads], "channels", channels, problems)
    return found_dim, found_channels


def find_classes(given: Mapping[str, int] | None, train: Sequence[ReadCase], problems: Problems) -> LabelMap | None:
    """The classes as given, else the distinct values of the training masks; None if these make no classes."""
    if given is not None:
        return LabelMap(given)
    if not train:
        return None
    values = {value for read in train for value in read.counts}
    lossy = [read for read in train if suffix_of(Path(str(read.case.mask_path))) in LOSSY_SUFFIXES]
    if lossy and len(values) > 2:
        reason = (
            f"JPEG blurs labels: the training masks hold {len(values)} values; save them as PNG or name the classes"
        )
        problems.add(Path(str(lossy[0].case.mask_path)), reason)
        return None
    try:
        return LabelMap(classes_from_values(values))
    except ValueError as fault:
        worst = max(train, key=lambda read: len(read.counts))
        problems.add(Path(str(worst.case.mask_path)), str(fault))
        return None


def check_values(reads: Sequence[ReadCase], labels: LabelMap | LabelNames, given: bool, problems: Problems) -> None:
    """Refuse masks with a value that belongs to no class."""
    origin = "" if given else ", taken from the training masks; name all of them with classes"
    for read in reads:
        unknown = labels.unknown(read.counts)
        if unknown:
            voxels = sum(read.counts[value] for value in unknown)
            shown = ", ".join(str(value) for value in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            problems.add(
                Path(str(read.case.mask_path)),
                f"mask value {shown} at {voxels} voxels is outside the classes ({labels.describe()}{origin})",
            )


def class_counts(reads: Sequence[ReadCase], labels: LabelMap | LabelNames) -> dict[int, int]:
    """Voxels of each class index, or of each label, over all cases."""
    total: Counter[int] = Counter()
    for read in reads:
        total.update(read.counts)
    values = range(len(labels.names)) if labels.multi_label else labels.values
    return {index: total[value] for index, value in enumerate(values)}


def shares(reads: Sequence[ReadCase], labels: LabelMap | LabelNames) -> tuple[dict[str, float], str | None]:
    """Share of the voxels of each class or label, and one line of warning where it is odd."""
    counts = class_counts(reads, labels)
    if labels.multi_label:
        return report_labels(labels.names, counts, sum(prod(read.case.shape) for read in reads))
    return report_fractions(labels.names, counts)


def _affine_fault(image: Volume) -> str | None:
    if image.affine is None:
        return None
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        return "its affine is singular or not finite, so that its axes have no direction; correct the header"
    return None
