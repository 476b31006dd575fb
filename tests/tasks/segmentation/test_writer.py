from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ics_apps.tasks.segmentation.writer import MaskWriter, write_map, write_mask, write_probabilities


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


def nifti_of(path: Path, *shape: int) -> Path:
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, -1.5, 0, 3], [0.8, 0, 0.1, -7], [0, 0.1, -5, 2], [0, 0, 0, 1.0]])
    source = nibabel.Nifti1Image(np.zeros(shape, np.int16), affine)
    source.header["cal_max"] = 900
    nibabel.save(source, path)
    return path


def test_probabilities_and_uncertainty_of_a_nifti_overlay_it(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    source = nifti_of(tmp_path / "scan.one.nii.gz", 2, 3, 4)
    out = tmp_path / "out"
    out.mkdir()
    values = np.random.default_rng(0).random((5, 2, 3, 4), np.float32)
    probabilities = write_probabilities(out, source, values, list("abcde"))
    uncertainty = write_map(out, source, "uncertainty", values[0])
    assert [path.name for path in (probabilities, uncertainty)] == [
        "scan.one.probabilities.nii.gz", "scan.one.uncertainty.nii.gz",
    ]  # fmt: skip
    for path, expected in ((probabilities, np.moveaxis(values, 0, -1)), (uncertainty, values[0])):
        written = nibabel.load(path)
        assert np.array_equal(written.affine, nibabel.load(source).affine)
        assert written.header.get_zooms()[:3] == nibabel.load(source).header.get_zooms()
        assert written.get_data_dtype() == np.float32
        assert np.array_equal(np.asarray(written.dataobj), expected)
        assert written.header["cal_max"] == 0


def test_probabilities_of_a_picture_are_an_npz_with_the_classes(tmp_path: Path) -> None:
    from tifffile import imread

    values = np.random.default_rng(0).random((2, 3, 4), np.float32)
    with np.load(write_probabilities(tmp_path, Path("in/a.png"), values, ["none", "cell"])) as file:
        assert np.array_equal(file["probabilities"], values)
        assert file["class_names"].tolist() == ["none", "cell"]
    path = write_map(tmp_path, Path("in/a.png"), "uncertainty", values[0])
    assert path.name == "a.uncertainty.tif"
    assert np.array_equal(imread(path), values[0])


def test_a_slice_saved_as_a_volume_keeps_its_third_axis(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    source = nifti_of(tmp_path / "slice.nii", 4, 5, 1)
    out = tmp_path / "out"
    out.mkdir()
    assert nibabel.load(write_mask(out, source, np.ones((4, 5), int))).shape == (4, 5, 1)
    assert nibabel.load(write_probabilities(out, source, np.ones((3, 4, 5)), list("abc"))).shape == (4, 5, 1, 3)


def test_a_prediction_of_another_size_is_refused(tmp_path: Path) -> None:
    source = nifti_of(tmp_path / "scan.nii", 4, 5, 6)
    with pytest.raises(ValueError, match="cannot be overlaid"):
        write_mask(tmp_path, source, np.ones((4, 5, 7), int))


class Model:
    facts = {"class_names": ["a", "b"], "mask_values": [0, 7]}  # noqa: RUF012 (a stand-in, nobody writes to it)


def written(tmp_path: Path, prediction: Any, source: Path) -> list[str]:
    trainer = SimpleNamespace(default_root_dir=tmp_path)
    batch = {"source": [str(source)], "image": torch.zeros(1, 1, 2, 3)}
    MaskWriter().write_on_batch_end(trainer, Model(), prediction, None, batch, 0, 0)  # type: ignore[arg-type]
    return sorted(path.name for path in (tmp_path / "predictions").iterdir())


def test_the_writer_takes_masks_alone_or_all_outputs(tmp_path: Path) -> None:
    mask = torch.tensor([[[0, 1, 1], [0, 0, 0]]])
    assert written(tmp_path, mask, Path("x.png")) == ["x.png"]
    assert np.asarray(Image.open(tmp_path / "predictions" / "x.png")).tolist() == [[0, 7, 7], [0, 0, 0]]
    outputs = {"mask": mask, "probabilities": torch.rand(1, 2, 2, 3), "uncertainty": torch.rand(1, 2, 3)}
    assert written(tmp_path, outputs, Path("x.png")) == ["x.png", "x.probabilities.npz", "x.uncertainty.tif"]


def test_labels_are_written_one_by_one(tmp_path: Path) -> None:
    labels = torch.tensor([[[[0, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 0]]]])
    assert written(tmp_path, {"mask": labels}, Path("x.y.png")) == ["x.y.a.png", "x.y.b.png"]
    assert np.asarray(Image.open(tmp_path / "predictions" / "x.y.b.png")).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_outputs_of_a_dicom_series_are_niftis_on_its_voxels(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    series, out = tmp_path / "series", tmp_path / "out"
    series.mkdir()
    out.mkdir()
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    mask = np.arange(24).reshape(2, 3, 4) % 2
    paths = [
        write_mask(out, series, mask, affine=affine),
        write_probabilities(out, series, np.stack([mask, mask]).astype(np.float32), ["a", "b"], affine),
        write_map(out, series, "uncertainty", mask, affine),
    ]
    assert [path.name for path in paths] == [
        "series.nii.gz",
        "series.probabilities.nii.gz",
        "series.uncertainty.nii.gz",
    ]
    for path, shape in zip(paths, [(2, 3, 4), (2, 3, 4, 2), (2, 3, 4)], strict=True):
        image = nibabel.load(path)
        assert image.shape == shape
        assert np.array_equal(image.affine, affine)
