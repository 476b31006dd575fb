"""Reading one image or mask: PNG and JPEG here, TIFF in `tiff`, NIfTI in `nifti`, DICOM in `dicom`, NumPy in `arrays`.

Every reader looks at the header first, refuses a file that would need too much memory, and only then reads pixels.
Which files belong together is in `pairing`, what the mask values mean in `classes`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.tasks.segmentation.data.arrays import ARRAY_SUFFIXES, read_array
from ics_apps.tasks.segmentation.data.dicom import is_series, read_series
from ics_apps.tasks.segmentation.data.nifti import read_nifti
from ics_apps.tasks.segmentation.data.tiff import read_tiff
from ics_apps.tasks.segmentation.data.volume import AFFINE_TOLERANCE, FileFaultError, Volume, check_size, plain

LOSSY_SUFFIXES: Final = (".jpg", ".jpeg")
PILLOW_SUFFIXES: Final = (".png", *LOSSY_SUFFIXES)
TIFF_SUFFIXES: Final = (".tif", ".tiff")
NIFTI_SUFFIXES: Final = (".nii.gz", ".nii")
SUFFIXES: Final = PILLOW_SUFFIXES + TIFF_SUFFIXES + NIFTI_SUFFIXES + ARRAY_SUFFIXES
MAX_VOXELS: Final = 2**27


def suffix_of(path: Path) -> str | None:
    """The known suffix of a file name, in lower case; None for a file that is no image.

    Example:
        >>> suffix_of(Path("scan.NII.GZ")), suffix_of(Path("notes.txt"))
        ('.nii.gz', None)
    """
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and len(name) > len(suffix)), None)


def stem_of(path: Path) -> str:
    """The file name without its suffix; `.nii.gz` counts as one suffix.

    Example:
        >>> stem_of(Path("images/case.01.nii.gz")), stem_of(Path("a.b.png"))
        ('case.01', 'a.b')
    """
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def read_image(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read an image as (C, *S), channels first.

    PNG and JPEG give 1 channel (grey) or 3 (colour; an alpha channel is dropped). The pages of a TIFF are its depth
    axis, its axes named S or C its channels. The fourth axis of a NIfTI is its channels. A folder of DICOM slices is
    one volume; for NumPy arrays see `arrays`.

    Args:
        path: File with one of `SUFFIXES`, or a folder of DICOM slices.
        max_voxels: Largest number of values that may be read, by the header.

    Raises:
        FileFaultError: Unreadable, too large, or an axis that has no meaning here.
        ImportError: NIfTI without the extra `medical`.
    """
    return _read(path, max_voxels, mask=False)


def read_mask(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    r"""Read a mask as whole numbers (\*S), uint8 where they fit and int32 otherwise.

    A mask with several channels is read only if all are equal. The indices of a palette PNG are its values.

    Raises:
        FileFaultError: As `read_image`; also channels that differ and values that are no whole numbers.
        ImportError: NIfTI without the extra `medical`.
    """
    volume = _read(path, max_voxels, mask=True)
    values = volume.values
    if any((channel != values[0]).any() for channel in values[1:]):
        raise FileFaultError(f"the mask has {len(values)} channels that differ; save it as one channel of class values")
    return Volume(_whole_numbers(values[0]), volume.spacing, volume.affine)


def read_label(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    r"""Read the masks of labels that may overlap, one channel each, as (K, \*S) of 0 and 1 (uint8).

    Raises:
        FileFaultError: As `read_image`; also a channel that holds more than 0 and one other value.
        ImportError: NIfTI without the extra `medical`.
    """
    volume = _read(path, max_voxels, mask=True)
    for number, channel in enumerate(volume.values):
        found = np.unique(_whole_numbers(channel))
        if len(found) > 2 or (len(found) == 2 and found[0] != 0):
            shown = ", ".join(str(value) for value in found[:4]) + (" ..." if len(found) > 4 else "")
            raise FileFaultError(
                f"channel {number} of the mask holds {shown}; a label's mask holds 0 and one other value"
            )
    return Volume((volume.values != 0).astype(np.uint8), volume.spacing, volume.affine)


def read_images(paths: Sequence[Path], max_voxels: int = MAX_VOXELS) -> Volume:
    r"""The image of a case as (C, \*S), its channels from one file or several in this order.

    Raises:
        FileFaultError: As `read_image`; also files that do not lie on each other.
        ImportError: As `read_image`.
    """
    return _join([read_image(path, max_voxels) for path in paths], paths)


def read_masks(paths: Sequence[Path], multi_label: bool, max_voxels: int = MAX_VOXELS) -> Volume:
    r"""The mask of a case: whole numbers (\*S), or 0 and 1 of each label (K, \*S) from one file or several.

    Raises:
        FileFaultError: As `read_mask` or `read_label`; also files that do not lie on each other.
        ImportError: As `read_image`.
    """
    if not multi_label:
        return read_mask(paths[0], max_voxels)
    return _join([read_label(path, max_voxels) for path in paths], paths)


def _join(volumes: Sequence[Volume], paths: Sequence[Path]) -> Volume:
    first = volumes[0]
    for volume, path in zip(volumes[1:], paths[1:], strict=True):
        if volume.values.shape[1:] != first.values.shape[1:]:
            sizes = (" x ".join(str(n) for n in v.values.shape[1:]) for v in (volume, first))
            raise FileFaultError(f"{path.name} is {next(sizes)} but {paths[0].name} is {next(sizes)}")
        if first.affine is not None and volume.affine is not None:
            gap = float(np.abs(volume.affine - first.affine).max())
            if not gap <= AFFINE_TOLERANCE:
                raise FileFaultError(f"the affines of {path.name} and {paths[0].name} differ by {gap:.3g}")
    if len(volumes) == 1:
        return first
    return Volume(np.concatenate([volume.values for volume in volumes]), first.spacing, first.affine)


def _read(path: Path, max_voxels: int, *, mask: bool) -> Volume:
    suffix = suffix_of(path)
    if suffix is None and not is_series(path):
        raise FileFaultError(f"unknown file type; allowed are {', '.join(SUFFIXES)}, or a folder of DICOM slices")
    if path.is_file() and path.stat().st_size == 0:
        raise FileFaultError("cannot be read: the file is empty")
    try:
        if suffix is None:
            return read_series(path, max_voxels)
        if suffix in ARRAY_SUFFIXES:
            return read_array(path, max_voxels, mask=mask)
        if suffix in NIFTI_SUFFIXES:
            return read_nifti(path, max_voxels)
        if suffix in TIFF_SUFFIXES:
            return read_tiff(path, max_voxels)
        return _read_pillow(path, max_voxels, mask=mask)
    except (FileFaultError, ImportError):
        raise
    except Exception as error:  # the decoders raise whatever the broken bytes lead to, struct.error and SyntaxError too
        lines = str(error).replace(str(path), path.name).strip().splitlines()
        raise FileFaultError(f"cannot be read: {lines[0] if lines else type(error).__name__}") from error


def _read_pillow(path: Path, max_voxels: int, *, mask: bool) -> Volume:
    from PIL import Image

    with warnings.catch_warnings():
        # `max_voxels` is our limit; Pillow's own warning starts below it, its error stays.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            check_size((image.height, image.width, len(image.getbands())), max_voxels)
            if mask and image.mode == "P":
                values: NDArray[Any] = np.array(image)
            elif image.mode in {"P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "PA", "RGBX", "RGBa"}:
                values = np.array(image.convert("RGB"))
            elif image.mode in {"LA", "La"}:
                values = np.array(image.convert("L"))
            else:
                values = np.array(image)
    planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
    return Volume(plain(planes), (1.0, 1.0))


def _whole_numbers(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f":
        bad = values[~(np.isfinite(values) & (values == np.round(values)))]
        if bad.size:
            raise FileFaultError(f"the mask holds {bad.flat[0]:g} at {bad.size} voxels; class values are whole numbers")
    low, high = values.min(), values.max()
    if low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if low < -(2**31) or high >= 2**31:
        raise FileFaultError(f"the mask holds values from {low:g} to {high:g}; allowed are those of int32")
    return values.astype(np.int32)
