"""From pairs of files to checked cases: every file is read once before training, and each fault is noted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ics_apps.tasks.segmentation.data.cases import Case, Cases, Normalize, moments
from ics_apps.tasks.segmentation.data.checks import Problems, check_alike, check_finite, check_pair
from ics_apps.tasks.segmentation.data.classes import LabelMap, classes_from_values, value_counts
from ics_apps.tasks.segmentation.data.formats import LOSSY_SUFFIXES, read_image, read_mask, suffix_of
from ics_apps.tasks.segmentation.data.pairing import Pair
from ics_apps.tasks.segmentation.data.volume import FileFaultError, Volume


@dataclass(slots=True)
class ReadCase:
    """A case as read: `values` is the mask with the values of its file, None if it is not kept in memory."""

    case: Case
    channels: int
    values: NDArray[Any] | None
    counts: dict[int, int]


class CaseReader:
    """Reads and checks cases, and keeps their arrays in memory until the limit is reached.

    Args:
        problems: Where faults go.
        normalize: "case" or "none".
        max_voxels: Largest number of values in a file.
        cache_bytes: Memory for the arrays of all cases together; later cases are read anew at each use.
    """

    def __init__(self, problems: Problems, normalize: Normalize, max_voxels: int, cache_bytes: int) -> None:
        self.problems = problems
        self.normalize = normalize
        self.max_voxels = max_voxels
        self.free_bytes = cache_bytes
        self.not_kept = 0

    def read_pair(self, pair: Pair) -> ReadCase | None:
        """An image with its mask; None if there is a fault."""
        image = self._image(pair.image)
        mask = self._mask(pair.mask)
        if image is None or mask is None:
            return None
        fault = check_pair(image, mask)
        if fault:
            self.problems.add(pair.mask, fault)
            return None
        read = self._read_case(pair.name, pair.image, image, mask.values)
        read.case.mask_path = pair.mask
        read.counts = value_counts(mask.values)
        return read

    def read_unlabelled(self, name: str, path: Path) -> ReadCase | None:
        """An image without a mask; None if there is a fault."""
        image = self._image(path)
        return None if image is None else self._read_case(name, path, image, None)

    def _image(self, path: Path) -> Volume | None:
        try:
            image = read_image(path, self.max_voxels)
        except FileFaultError as fault:
            self.problems.add(path, str(fault))
            return None
        reason = check_finite(image.values)
        if reason:
            self.problems.add(path, reason)
            return None
        return image

    def _mask(self, path: Path) -> Volume | None:
        try:
            return read_mask(path, self.max_voxels)
        except FileFaultError as fault:
            self.problems.add(path, str(fault))
            return None

    def _read_case(self, name: str, path: Path, image: Volume, mask: NDArray[Any] | None) -> ReadCase:
        mean, std = moments(image.values, self.normalize)
        case = Case(name, image.values.shape[1:], image.spacing, mean, std, image_path=path)
        size = image.values.nbytes + (0 if mask is None else mask.nbytes)
        keep = size <= self.free_bytes
        if keep:
            self.free_bytes -= size
            case.image = image.values
        else:
            self.not_kept += 1
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


def check_values(reads: Sequence[ReadCase], labels: LabelMap, given: bool, problems: Problems) -> None:
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


def to_cases(reads: Sequence[ReadCase], labels: LabelMap, max_voxels: int) -> Cases:
    """Cases with class indices in place of the values of the mask files."""
    for read in reads:
        if read.values is not None:
            read.case.mask = labels.to_index(read.values)
            read.values = None
    return Cases([read.case for read in reads], labels, max_voxels)


def class_counts(reads: Sequence[ReadCase], labels: LabelMap) -> dict[int, int]:
    """Voxels of each class index over all cases."""
    total: Counter[int] = Counter()
    for read in reads:
        total.update(read.counts)
    return {index: total[value] for index, value in enumerate(labels.values)}
