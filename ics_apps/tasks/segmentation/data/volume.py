"""What a reader gives, and the two rules that all readers share: a size limit by the header, and plain number types."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

AFFINE_TOLERANCE: Final = 1e-3
"""Largest difference between entries of two affines of one grid, in mm."""


class FileFaultError(ValueError):
    """One file is not usable; the text is the reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class Volume:
    """What one file holds.

    Args:
        values: Image (C, *S), mask (*S) or masks of labels (K, *S), in the file's own number type and voxel order.
        spacing: Distance of voxel centres along each axis of S: mm for NIfTI and DICOM, as given in an NPZ, else 1.0.
        affine: Voxel index to mm (right, anterior, superior), (4, 4), for NIfTI and DICOM; None otherwise.
    """

    values: NDArray[Any]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64] | None = None


def check_size(shape: tuple[int, ...], max_voxels: int) -> None:
    """Refuse a file by the size that its header states.

    Raises:
        FileFaultError: No value, or more than `max_voxels`.
    """
    if prod(shape) > max_voxels or min(shape, default=0) < 1:
        size = " x ".join(str(n) for n in shape)
        raise FileFaultError(f"{size} = {prod(shape)} values by its header; allowed are 1 to {max_voxels} (max_voxels)")


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Bool as uint8, integers as they are, floats as float32; in native byte order, contiguous.

    Raises:
        FileFaultError: Any other type.
    """
    if values.dtype.kind == "b":
        return np.ascontiguousarray(values, dtype=np.uint8)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, and is refused as such
            return np.ascontiguousarray(values, dtype=np.float32)
    if values.dtype.kind in "iu":
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    raise FileFaultError(f"values of type {values.dtype} are not supported; save plain numbers")
