from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ics_apps.tasks.segmentation.writer import write_mask


def test_a_png_or_jpeg_input_gives_a_png_with_the_training_values(tmp_path: Path) -> None:
    path = write_mask(tmp_path, Path("in/a.jpg"), np.array([[0, 255], [255, 0]]))
    assert path.name == "a.png"
    assert np.asarray(Image.open(path)).tolist() == [[0, 255], [255, 0]]


def test_a_tiff_stack_gives_a_tiff_stack(tmp_path: Path) -> None:
    from tifffile import imread

    mask = np.arange(24).reshape(2, 3, 4) % 3
    path = write_mask(tmp_path, Path("in/a.tif"), mask)
    assert np.array_equal(imread(path), mask)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_a_nifti_keeps_affine_units_and_voxel_order(tmp_path: Path, name: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, -1.5, 0, 3], [0.8, 0, 0.1, -7], [0, 0.1, -5, 2], [0, 0, 0, 1.0]])
    source = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), affine)
    source.header.set_xyzt_units("mm", "sec")
    nibabel.save(source, tmp_path / name)
    mask = np.arange(24).reshape(2, 3, 4) % 2
    out = tmp_path / "out"
    out.mkdir()
    written = nibabel.load(write_mask(out, tmp_path / name, mask))
    assert np.array_equal(written.affine, nibabel.load(tmp_path / name).affine)
    assert np.array_equal(np.asarray(written.dataobj), mask)
    assert written.get_data_dtype() == np.uint8
    assert written.header.get_xyzt_units() == ("mm", "sec")


def test_values_above_255_are_kept(tmp_path: Path) -> None:
    from tifffile import imread

    assert imread(write_mask(tmp_path, Path("a.tif"), np.array([[0, 1000]]))).tolist() == [[0, 1000]]
