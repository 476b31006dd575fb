"""From the values in a mask file to class indices, and the fractions of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_FOUND_CLASSES: Final = 32
MAX_CLASSES: Final = 256
_TABLE_SIZE: Final = 2**16


class LabelMap:
    """Mask file value -> class index, by table lookup.

    Args:
        classes: Class name -> mask file value; the order is the class index and the first is the background.

    Raises:
        ValueError: Fewer than 2 or more than 256 classes, or a value used twice.

    Example:
        >>> labels = LabelMap({"inside": 255, "membrane": 0})
        >>> labels.to_index(np.array([[0, 255]], dtype=np.uint8))
        array([[1, 0]], dtype=uint8)
        >>> labels.unknown([0, 7, 255])
        [7]
    """

    def __init__(self, classes: Mapping[str, int]) -> None:
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise ValueError(
                f"classes names {len(classes)} classes; allowed are 2 to {MAX_CLASSES}, the first the background."
            )
        self.names = [str(name) for name in classes]
        self.values = [int(value) for value in classes.values()]
        twice = sorted({value for value in self.values if self.values.count(value) > 1})
        if twice:
            names = [name for name, value in zip(self.names, self.values, strict=True) if value == twice[0]]
            raise ValueError(
                f"classes gives mask value {twice[0]} to {' and '.join(names)}; each class has its own value."
            )
        order = np.argsort(self.values)
        self._sorted = np.asarray(self.values, dtype=np.int64)[order]
        self._index = order.astype(np.uint8)
        self._table: NDArray[np.uint8] | None = None
        if self._sorted[0] >= 0 and self._sorted[-1] < _TABLE_SIZE:
            self._table = np.zeros(max(256, int(self._sorted[-1]) + 1), dtype=np.uint8)
            self._table[self.values] = np.arange(len(self.values))

    def unknown(self, values: Iterable[int]) -> list[int]:
        """The values that belong to no class, sorted."""
        return sorted({int(value) for value in values} - set(self.values))

    def to_index(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """Class indices of a mask that holds known values only (see `unknown`)."""
        if self._table is not None:
            return np.take(self._table, mask)
        found = np.searchsorted(self._sorted, mask.ravel())
        return self._index[found].reshape(mask.shape)

    def describe(self) -> str:
        """`inside=255, membrane=0`."""
        return ", ".join(f"{name}={value}" for name, value in zip(self.names, self.values, strict=True))


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
