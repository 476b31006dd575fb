"""Everything that is wrong with a dataset, gathered and told at once before training starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.nearest import nearest_name
from ics_apps.tasks.segmentation.data.volume import AFFINE_TOLERANCE, Volume

MAX_LISTED: Final = 20


class DataError(ValueError):
    """The dataset cannot be trained on; the text names each file and the reason."""


class Problems:
    """The list of (file, reason), raised as one `DataError`.

    Args:
        root: Files below it are named relative to it.

    Example:
        >>> problems = Problems(Path("cells"))
        >>> problems.add(Path("cells/images/1.png"), "no mask")
        >>> problems.raise_if_any()
        Traceback (most recent call last):
            ...
        ics_apps.tasks.segmentation.data.checks.DataError: 1 problem in cells:
          images/1.png: no mask
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: list[tuple[str, str]] = []

    def add(self, file: Path | str, reason: str) -> None:
        """Note one file and why it is refused."""
        self.found.append((self.name(file), reason))

    def name(self, file: Path | str) -> str:
        """The file's name in messages."""
        path = Path(file)
        below = path != self.root and path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if below else str(file)

    def raise_if_any(self) -> None:
        """Raise what was found.

        Raises:
            DataError: Up to 20 problems, then how many more there are.
        """
        if not self.found:
            return
        count = len(self.found)
        lines = [f"{count} problem{'s' if count > 1 else ''} in {self.root}:"]
        lines += [f"  {file}: {reason}" for file, reason in self.found[:MAX_LISTED]]
        if count > MAX_LISTED:
            lines.append(f"  and {count - MAX_LISTED} more")
        raise DataError("\n".join(lines))


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The most similar of `names`, first by letters without their case.

    Example:
        >>> nearest("cell_1", ["Cell_1", "cell_10"]), nearest("x", ["image"])
        ('Cell_1', None)
    """
    folded = [other for other in names if other.lower() == name.lower()]
    if folded:
        return folded[0]
    return nearest_name(name, names, likeness=0.6)


def some(names: Sequence[str], most: int = 6) -> str:
    """The first few names and how many more there are.

    Example:
        >>> some(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def check_pair(image: Volume, mask: Volume) -> str | None:
    """Why a mask does not lie on its image; None if it does."""
    # A mask of several labels has an axis of labels before those of space.
    shape = mask.values.shape[mask.values.ndim - len(mask.spacing) :]
    if image.values.shape[1:] != shape:
        return f"the mask is {_size(shape)} but its image is {_size(image.values.shape[1:])}"
    if image.affine is None or mask.affine is None:
        return None
    if not np.allclose(image.spacing, mask.spacing, rtol=0.0, atol=AFFINE_TOLERANCE):
        return f"the mask has spacing {_mm(mask.spacing)} but its image has {_mm(image.spacing)}"
    gap = float(np.abs(image.affine - mask.affine).max())
    if not gap <= AFFINE_TOLERANCE:
        allowed = f"(allowed is {AFFINE_TOLERANCE:g})"
        return f"the affines of mask and image differ by {gap:.3g} {allowed}; resample the mask to the image"
    return None


def check_finite(values: NDArray[Any]) -> str | None:
    """How many values are NaN or infinite; None if all are finite."""
    if values.dtype.kind != "f":
        return None
    bad = int(values.size - np.isfinite(values).sum())
    return f"NaN or infinite at {bad} of {values.size} voxels" if bad else None


def check_alike(
    files: Sequence[Path], found: Sequence[int], what: str, wanted: int | None, problems: Problems
) -> int | None:
    """Hold all cases to one number of channels (or axes): `wanted`, else the most frequent one.

    Returns:
        That number; None without cases.
    """
    if not found:
        return wanted
    usual, times = Counter(found).most_common(1)[0]
    rule = f"{times} of {len(found)} cases have {usual}" if wanted is None else f"asked for are {wanted}"
    target = usual if wanted is None else wanted
    for file, number in zip(files, found, strict=True):
        if number != target:
            problems.add(file, f"{number} {what}, but {rule}")
    return target


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing) + " mm"
