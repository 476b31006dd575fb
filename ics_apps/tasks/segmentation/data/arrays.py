r"""Reading NumPy arrays: NPY, and NPZ with the keys image or data, mask, and spacing if it is known.

Two axes are a plane, three a volume, four the channels and a volume (C, \*S). An NPZ with `spacing` says by its length
how many axes are space, so that a colour image (C, H, W) comes with two numbers.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ics_apps.tasks.segmentation.data.volume import FileFaultError, Volume, check_size, plain

ARRAY_SUFFIXES: Final = (".npz", ".npy")
IMAGE_KEYS: Final = ("image", "data")
MASK_KEYS: Final = ("mask", "data")


def read_array(path: Path, max_voxels: int, *, mask: bool) -> Volume:
    r"""Read an array as (C, \*S).

    Args:
        path: NPY or NPZ.
        max_voxels: Largest number of values, by its header.
        mask: Take the NPZ's mask instead of its image.

    Raises:
        FileFaultError: Too large, no such key, Python objects in place of numbers, axes that have no meaning here.
    """
    if path.name.lower().endswith(".npy"):
        with path.open("rb") as stream:
            return _volume(_read(stream, max_voxels), None)
    with zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        wanted = MASK_KEYS if mask else IMAGE_KEYS
        key = next((name for name in wanted if name in keys), None)
        if key is None:
            raise FileFaultError(f"the NPZ has no {' and no '.join(wanted)}; it holds {', '.join(keys) or 'nothing'}")
        with archive.open(f"{key}.npy") as stream:
            values = _read(stream, max_voxels)
        spacing = None
        if "spacing" in keys:
            with archive.open("spacing.npy") as stream:
                spacing = tuple(float(h) for h in np.atleast_1d(_read(stream, 8)))
    return _volume(values, spacing)


def _read(stream: Any, max_voxels: int) -> NDArray[Any]:
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise FileFaultError("the array holds Python objects; save plain numbers")
    check_size(tuple(shape) or (1,), max_voxels)
    count = int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(stream.read(count * dtype.itemsize), dtype=dtype)
    if values.size != count:
        raise FileFaultError(f"cannot be read: it holds {values.size} of the {count} values that its header states")
    # A copy, because bytes cannot be written to and torch wants arrays that can.
    return values.reshape(shape, order="F" if fortran else "C").copy()


def _volume(values: NDArray[Any], spacing: tuple[float, ...] | None) -> Volume:
    axes = len(spacing) if spacing is not None else min(values.ndim, 3)
    if not 2 <= axes <= 3 or values.ndim - axes not in {0, 1}:
        said = "" if spacing is None else f" and {len(spacing)} spacings"
        raise FileFaultError(
            f"the array has {values.ndim} axes{said}; allowed are 2 or 3 axes of space and one of channels before them"
        )
    if spacing is not None and not all(0 < h < float("inf") for h in spacing):
        raise FileFaultError(f"spacing is {spacing}; allowed are numbers above 0")
    planes = values if values.ndim > axes else values[None]
    return Volume(plain(planes), spacing or (1.0,) * axes)
