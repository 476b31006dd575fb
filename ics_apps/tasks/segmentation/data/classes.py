"""From the values in a mask file to class indices or labels, and the fractions of the classes.

In memory a mask is uint8: class indices, or 0 and 1 of each label where labels may overlap. What nobody has labelled
is `UNLABELLED` there and becomes `targets.IGNORE` in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_FOUND_CLASSES: Final = 32
MAX_CLASSES: Final = 256
IGNORE_CLASS: Final = "ignore"
UNLABELLED: Final = 255
_TABLE_SIZE: Final = 2**16


class LabelMap:
    """Mask file value -> class index, by table lookup.

    Args:
        classes: Class name -> mask file value; the order is the class index and the first is the background. The name
            `ignore` is no class: its voxels count in no loss and no score.

    Raises:
        ValueError: Fewer than 2 or more than 256 classes (255 with `ignore`), or a value used twice.

    Example:
        >>> labels = LabelMap({"inside": 255, "membrane": 0})
        >>> labels.to_index(np.array([[0, 255]], dtype=np.uint8))
        array([[1, 0]], dtype=uint8)
        >>> labels.unknown([0, 7, 255])
        [7]
        >>> LabelMap({"background": 0, "cord": 1, "ignore": 9}).to_index(np.array([0, 1, 9]))
        array([  0,   1, 255], dtype=uint8)
    """

    multi_label = False

    def __init__(self, classes: Mapping[str, int]) -> None:
        named = {str(name): int(value) for name, value in classes.items()}
        self.ignore = named.pop(IGNORE_CLASS, None)
        most = MAX_CLASSES if self.ignore is None else UNLABELLED
        if not 2 <= len(named) <= most:
            raise ValueError(f"classes names {len(named)} classes; allowed are 2 to {most}, the first the background.")
        self.names, self.values = list(named), list(named.values())
        values = self.values if self.ignore is None else [*self.values, self.ignore]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            names = [str(name) for name, value in classes.items() if int(value) == twice[0]]
            raise ValueError(
                f"classes gives mask value {twice[0]} to {' and '.join(names)}; each class has its own value."
            )
        indices = np.asarray([*range(len(self.values)), *[UNLABELLED] * (self.ignore is not None)], dtype=np.uint8)
        order = np.argsort(values)
        self._sorted = np.asarray(values, dtype=np.int64)[order]
        self._index = indices[order]
        self._table: NDArray[np.uint8] | None = None
        if self._sorted[0] >= 0 and self._sorted[-1] < _TABLE_SIZE:
            self._table = np.zeros(max(256, int(self._sorted[-1]) + 1), dtype=np.uint8)
            self._table[values] = indices

    def unknown(self, values: Iterable[int]) -> list[int]:
        """The values that belong to no class, sorted."""
        return sorted({int(value) for value in values} - {*self.values, self.ignore})

    def to_index(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """Class indices of a mask that holds known values only (see `unknown`)."""
        if self._table is not None:
            return np.take(self._table, mask)
        found = np.searchsorted(self._sorted, mask.ravel())
        return self._index[found].reshape(mask.shape)

    def describe(self) -> str:
        """`inside=255, membrane=0`."""
        shown = dict(zip(self.names, self.values, strict=True))
        if self.ignore is not None:
            shown[IGNORE_CLASS] = self.ignore
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class LabelNames:
    """Labels that may overlap: one channel each, 0 or 1. There is no background among them.

    Args:
        names: The labels, in the order of the channels.

    Raises:
        ValueError: No name, or more than 255.

    Example:
        >>> LabelNames(["cord", "lesion"]).values
        [1, 1]
    """

    multi_label = True
    ignore: int | None = None

    def __init__(self, names: Iterable[str]) -> None:
        self.names = [str(name) for name in names]
        if not 1 <= len(self.names) < MAX_CLASSES or IGNORE_CLASS in self.names:
            raise ValueError(
                f"masks names the labels {', '.join(self.names) or 'none'}; allowed are 1 to {MAX_CLASSES - 1}, none "
                f"of them {IGNORE_CLASS!r}."
            )
        self.values = [1] * len(self.names)

    def unknown(self, values: Iterable[int]) -> list[int]:
        """None: what is a label at all is decided when its file is read."""
        return []

    def to_index(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """The mask as it is, (K, *S)."""
        return mask.astype(np.uint8, copy=False)

    def describe(self) -> str:
        """`labels cord, lesion`."""
        return f"labels {', '.join(self.names)}"


def classes_from_values(values: Iterable[int]) -> dict[str, int]:
    """Name the classes after the distinct values of the training masks, the smallest being the background.

    Raises:
        ValueError: One value only, or more than 32 (anti-aliased edges or a lossy file).

    Example:
        >>> classes_from_values([255, 0])
        {'background': 0, 'foreground': 255}
        >>> classes_from_values([0, 2, 7])
        {'background': 0, 'class_2': 2, 'class_7': 7}
    """
    found = sorted({int(value) for value in values})
    if len(found) == 1:
        raise ValueError(
            f"the training masks hold the single value {found[0]}; a class besides the background is needed"
        )
    if len(found) > MAX_FOUND_CLASSES:
        raise ValueError(
            f"the training masks hold {len(found)} distinct values, more than {MAX_FOUND_CLASSES}: these are grey "
            "levels and no labels (smoothed edges or JPEG); save the masks as unsmoothed PNG, or name the classes"
        )
    if len(found) == 2:
        return {"background": found[0], "foreground": found[1]}
    return {"background": found[0]} | {f"class_{value}": value for value in found[1:]}


def value_counts(mask: NDArray[Any]) -> dict[int, int]:
    """How many voxels hold each value.

    Example:
        >>> value_counts(np.array([[3, 0], [3, 3]], dtype=np.uint8))
        {0: 1, 3: 3}
    """
    if mask.dtype == np.uint8:
        counts = np.bincount(mask.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(mask, return_counts=True)
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
