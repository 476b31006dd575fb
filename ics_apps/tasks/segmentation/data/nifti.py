"""Reading NIfTI with nibabel (extra `medical`), voxels in the order in which they are stored."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from ics_apps.tasks.segmentation.data.volume import FileFaultError, Volume, check_size, plain

# A NIfTI header may put the voxels anywhere in the file; extensions of real files are far below this.
MAX_OFFSET: Final = 2**26


def read_nifti(path: Path, max_voxels: int) -> Volume:
    """Read an image as (C, *S): the fourth axis is the channels; trailing axes of one voxel are dropped.

    Raises:
        FileFaultError: Too large by its header, or axes that have no meaning here.
        ImportError: nibabel is missing.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            f"{path.name}: NIfTI files need nibabel; install it: pip install 'ics-apps[medical]'"
        ) from error
    shape = _nifti_shape(path, nibabel)
    check_size(shape, max_voxels)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4:
        raise FileFaultError(f"the NIfTI has shape {shape}; allowed are 2 or 3 axes of space and one of channels")
    file: Any = nibabel.load(path)
    values = np.asarray(file.dataobj).reshape(shape)
    planes = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
    spacing = tuple(float(zoom) for zoom in file.header.get_zooms()[: planes.ndim - 1])
    return Volume(plain(planes), spacing, np.asarray(file.affine, dtype=np.float64))


def _nifti_shape(path: Path, nibabel: Any) -> tuple[int, ...]:
    # nibabel's own loader would follow a huge offset through a gzip stream before any size is known.
    opener: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as stream:
        head = stream.read(540)
    if len(head) < 348:
        raise FileFaultError(f"cannot be read: {len(head)} bytes are too few for a NIfTI header")
    second = int.from_bytes(head[:4], "little") == 540 or int.from_bytes(head[:4], "big") == 540
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind(head[: 540 if second else 348], check=False)
    if int(header["vox_offset"]) > MAX_OFFSET:
        raise FileFaultError(f"cannot be read: the header puts the voxels at byte {int(header['vox_offset'])}")
    return tuple(int(n) for n in header.get_data_shape())
