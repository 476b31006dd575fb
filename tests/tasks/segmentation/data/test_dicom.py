"""DICOM series: order, places, units, and each fault by the name of its slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from ics_apps.tasks.segmentation.data import DataError, ImageMaskFolderData
from ics_apps.tasks.segmentation.data.formats import read_image
from ics_apps.tasks.segmentation.data.volume import FileFaultError

VOLUME = np.random.default_rng(0).integers(0, 2000, (5, 4, 6), dtype=np.int16)  # columns, rows, slices


def save_slice(path: Path, pixels: np.ndarray, place: tuple[float, float, float], **changes: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.SeriesInstanceUID = "1.2.4"
    header.ImageOrientationPatient, header.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.8, 0.5]
    header.ImagePositionPatient = list(place)
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    for key, value in changes.items():
        setattr(header, key, value)
    header.PixelData = pixels.astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)


def series(folder: Path, volume: np.ndarray = VOLUME) -> Path:
    # Names run against the places, so that sorting by name would turn the volume upside down.
    for k in range(volume.shape[2]):
        save_slice(folder / f"{9 - k}.dcm", volume[..., k].T, (10.0, 20.0, 30.0 + 2.5 * k))
    return folder


def test_slices_are_sorted_by_their_place_and_rescaled(tmp_path: Path) -> None:
    volume = read_image(series(tmp_path / "a"))
    np.testing.assert_array_equal(volume.values[0], VOLUME.astype(np.float32) - 1024)
    assert volume.spacing == (0.5, 0.8, 2.5)


def test_the_affine_runs_right_anterior_superior(tmp_path: Path) -> None:
    affine = read_image(series(tmp_path / "a")).affine
    wanted = [[-0.5, 0, 0, -10], [0, -0.8, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, wanted, atol=1e-9)


def test_sagittal_slices_have_their_own_affine(tmp_path: Path) -> None:
    for k in range(3):
        place, turned = (5.0 * k, 0.0, 0.0), [0, 1, 0, 0, 0, -1]
        save_slice(tmp_path / f"{k}.dcm", VOLUME[..., k].T, place, ImageOrientationPatient=turned)
    volume = read_image(tmp_path)
    assert volume.affine is not None
    # Columns run to the back, rows downwards; the normal of these two points left to right of the patient, -x in LPS.
    np.testing.assert_allclose(volume.affine[:3, :3], [[0, 0, 5], [-0.5, 0, 0], [0, -0.8, 0]], atol=1e-9)
    np.testing.assert_array_equal(volume.values[0, ..., 0], VOLUME[..., 2] - 1024.0)


def fault(folder: Path) -> str:
    with pytest.raises(FileFaultError) as caught:
        read_image(folder)
    return str(caught.value)


def test_missing_and_double_slices_are_named(tmp_path: Path) -> None:
    (series(tmp_path / "a") / "6.dcm").unlink()
    assert fault(tmp_path / "a") == "1 slice is missing between 7.dcm and 5.dcm: they are 5 mm apart, others 2.5 mm"
    save_slice(series(tmp_path / "b") / "x.dcm", VOLUME[..., 0].T, (10.0, 20.0, 32.5))
    assert fault(tmp_path / "b") == "8.dcm and x.dcm lie at one place (32.5 mm); remove one of the two"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SeriesInstanceUID": "1.9"}, "x.dcm is of another series than 4.dcm"),
        ({"PixelSpacing": [1, 1]}, "x.dcm has PixelSpacing 1 x 1 but 4.dcm has 0.8 x 0.5"),
        ({"ImagePositionPatient": None}, "x.dcm has no ImagePositionPatient"),
        ({"NumberOfFrames": 3}, "x.dcm holds 3 frames; convert it to NIfTI"),
        ({"BitsAllocated": 12}, "the pixels of x.dcm cannot be read"),
    ],
)
def test_slices_that_do_not_belong_together_are_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    save_slice(series(tmp_path / "a") / "x.dcm", VOLUME[..., 0].T, (10.0, 20.0, 45.0), **changes)
    assert fault(tmp_path / "a").startswith(reason)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (series(tmp_path / "a") / "x.dcm").write_bytes(b"nothing")
    assert fault(tmp_path / "a").startswith("x.dcm cannot be read")


def test_size_is_known_from_the_headers(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="5 x 4 x 6 = 120 values by its header"):
        read_image(series(tmp_path / "a"), 119)


def test_folders_of_slices_train_with_nifti_masks_that_run_along_other_axes(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        affine = read_image(series(tmp_path / "images" / stem)).affine
        mask = nibabel.Nifti1Image((VOLUME > 1000).astype(np.uint8), affine)
        (tmp_path / "masks").mkdir(exist_ok=True)
        nibabel.save(nibabel.as_closest_canonical(mask), tmp_path / "masks" / f"{stem}.nii.gz")
    data = ImageMaskFolderData(str(tmp_path), patch_size=4, orientation="RAS")
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    np.testing.assert_array_equal(batch["mask"][0].numpy(), VOLUME > 1000)
    assert batch["image"].shape == (1, 1, 5, 4, 6)
    (tmp_path / "images" / "b" / "6.dcm").unlink()
    with pytest.raises(DataError, match=r"images/b: 1 slice is missing between 7.dcm and 5.dcm"):
        ImageMaskFolderData(str(tmp_path)).setup("fit")


def test_a_folder_of_slices_is_one_image_to_predict(tmp_path: Path) -> None:
    folder = series(tmp_path / "scan")
    data = ImageMaskFolderData(str(tmp_path), predict_root=str(folder), classes={"a": 0, "b": 1})
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert (batch["case"], batch["source"]) == (["scan"], [str(folder)])
    assert batch["grid"][0].affine is not None


def test_pydicom_reads_what_these_tests_write(tmp_path: Path) -> None:
    header = pydicom.dcmread(series(tmp_path / "a") / "9.dcm")
    np.testing.assert_array_equal(header.pixel_array, VOLUME[..., 0].T)
