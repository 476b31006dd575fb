"""Reading a DICOM series with pydicom (extra `medical`): one folder, one volume, slices sorted along their normal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.tasks.segmentation.data.volume import FileFaultError, Volume, check_size, plain

DICOM_SUFFIXES: Final = (".dcm", ".dicom", ".ima")
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_RELATIVE: Final = 0.01


def slice_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in DICOM_SUFFIXES and path.is_file()]
    return sorted(path for path in found if not path.name.startswith("."))


def is_series(path: Path) -> bool:
    """Whether a path is a folder that holds DICOM files."""
    return path.is_dir() and bool(slice_files(path))


def read_series(folder: Path, max_voxels: int) -> Volume:
    """Read a folder of slices as one volume (1, columns, rows, slices).

    Slices are sorted by the component of ImagePositionPatient along the normal of ImageOrientationPatient, values are
    stored values times RescaleSlope plus RescaleIntercept, and the affine maps (column, row, slice) to mm right,
    anterior, superior (DICOM's own axes run left and posterior).

    Raises:
        FileFaultError: More than one series, slices that differ in size, spacing or direction, two at one place, one
            missing in between, several frames or colours in a file.
        ImportError: pydicom is missing.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(
            f"{folder.name}: DICOM files need pydicom; install it: pip install 'ics-apps[medical]'"
        ) from error
    slices = []
    for path in slice_files(folder):
        try:
            slices.append((path.name, pydicom.dcmread(path, stop_before_pixels=True), path))
        except Exception as error:  # whatever the broken bytes lead to
            raise FileFaultError(f"{path.name} cannot be read: {error}") from error
    for name, header, _ in slices:
        _check_header(name, header)
    first_name, first, _ = slices[0]
    for name, header, _ in slices[1:]:
        _check_same(first_name, first, name, header)
    across, down = (np.asarray(first.ImageOrientationPatient[i : i + 3], dtype=np.float64) for i in (0, 3))
    normal = np.cross(across, down)
    places = np.array([np.dot(normal, np.asarray(h.ImagePositionPatient, dtype=np.float64)) for _, h, _ in slices])
    order = np.argsort(places, kind="stable")
    slices, places = [slices[i] for i in order], places[order]
    step = _step([name for name, _, _ in slices], places, first)
    check_size((int(first.Columns), int(first.Rows), len(slices)), max_voxels)
    values = np.stack([_pixels(name, pydicom.dcmread(path)).T for name, _, path in slices], axis=-1)
    row_step, column_step = (float(h) for h in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = across * column_step, down * row_step, normal * step
    affine[:3, 3] = np.asarray(slices[0][1].ImagePositionPatient, dtype=np.float64)
    if len(slices) > 1:  # the measured direction, which is oblique to the normal where the gantry was tilted
        last = np.asarray(slices[-1][1].ImagePositionPatient, dtype=np.float64)
        affine[:3, 2] = (last - affine[:3, 3]) / (len(slices) - 1)
        step = float(np.linalg.norm(affine[:3, 2]))
    return Volume(plain(values[None]), (column_step, row_step, step), _LPS_TO_RAS @ affine)


def _check_header(name: str, header: Any) -> None:
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    missing = [key for key in needed if getattr(header, key, None) is None]
    if missing:
        raise FileFaultError(
            f"{name} has no {', '.join(missing)}; a series of slices with places in the patient is needed"
        )
    if int(getattr(header, "NumberOfFrames", 1) or 1) > 1:
        raise FileFaultError(
            f"{name} holds {header.NumberOfFrames} frames; convert it to NIfTI, or to one slice a file"
        )
    if int(getattr(header, "SamplesPerPixel", 1)) > 1:
        raise FileFaultError(f"{name} holds {header.SamplesPerPixel} colours; allowed are grey slices")


def _check_same(first_name: str, first: Any, name: str, header: Any) -> None:
    if getattr(header, "SeriesInstanceUID", None) != getattr(first, "SeriesInstanceUID", None):
        raise FileFaultError(f"{name} is of another series than {first_name}; give each series a folder of its own")
    for key in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        ours, theirs = (np.atleast_1d(np.asarray(getattr(h, key), dtype=np.float64)) for h in (header, first))
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
            shown = " x ".join(f"{v:g}" for v in ours), " x ".join(f"{v:g}" for v in theirs)
            raise FileFaultError(f"{name} has {key} {shown[0]} but {first_name} has {shown[1]}")


def _step(names: Sequence[str], places: NDArray[np.float64], first: Any) -> float:
    """The distance of neighbouring slices along the normal, in mm."""
    if len(places) == 1:
        return float(getattr(first, "SpacingBetweenSlices", None) or getattr(first, "SliceThickness", None) or 1.0)
    steps = np.diff(places)
    usual = float(np.median(steps))
    twice = np.flatnonzero(steps <= _RELATIVE * usual)
    if twice.size:
        i = int(twice[0])
        raise FileFaultError(
            f"{names[i]} and {names[i + 1]} lie at one place ({places[i]:g} mm); remove one of the two"
        )
    wide = np.flatnonzero(np.abs(steps - usual) > max(_RELATIVE * usual, 1e-2))
    if wide.size:
        i = int(wide[0])
        count = round(float(steps[i]) / usual) - 1
        what = f"{count} slice{'s are' if count > 1 else ' is'} missing" if count > 0 else "slices are unevenly spaced"
        raise FileFaultError(
            f"{what} between {names[i]} and {names[i + 1]}: they are {steps[i]:g} mm apart, others {usual:g} mm"
        )
    return usual


def _pixels(name: str, header: Any) -> NDArray[Any]:
    try:
        values: NDArray[Any] = header.pixel_array
    except Exception as error:  # compressed pixels without their decoder, cut files
        raise FileFaultError(f"the pixels of {name} cannot be read: {str(error).splitlines()[0]}") from error
    slope, intercept = (
        float(getattr(header, key, value)) for key, value in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if slope == 1 and intercept == 0:
        return values
    scaled: NDArray[np.float32] = (values.astype(np.float64) * slope + intercept).astype(np.float32)
    return scaled
