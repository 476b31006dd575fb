"""Reading files: what each format gives, and how a broken or oversized one is refused."""

from __future__ import annotations

import builtins
import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from ics_apps.tasks.segmentation.data.formats import read_image, read_mask, stem_of, suffix_of
from ics_apps.tasks.segmentation.data.volume import FileFaultError

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)
STACK = np.arange(105, dtype=np.uint16).reshape(3, 5, 7) * 600
AFFINE = np.array([[0.0, -2.0, 0, 5], [1.0, 0, 0, -7], [0, 0, 3.0, 0], [0, 0, 0, 1]])


def save_png(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def empty_png(path: Path, width: int, height: int) -> Path:
    """A PNG whose header states a size that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_gz_is_part_of_the_suffix_and_other_dots_are_part_of_the_stem() -> None:
    assert stem_of(Path("a/x.1.nii.gz")) == "x.1"
    assert stem_of(Path("x.1.TIFF")) == "x.1"
    assert suffix_of(Path("x.NII.gz")) == ".nii.gz"
    assert suffix_of(Path("x.gz")) is None
    assert suffix_of(Path(".png")) is None


def test_grey_png_has_one_channel_first(tmp_path: Path) -> None:
    volume = read_image(save_png(tmp_path / "a.png", GREY))
    np.testing.assert_array_equal(volume.values, GREY[None])
    assert volume.values.dtype == np.uint8
    assert volume.spacing == (1.0, 1.0)
    assert volume.affine is None


def test_colour_comes_channels_first_and_alpha_is_dropped(tmp_path: Path) -> None:
    rgb = np.stack([GREY, GREY + 1, GREY + 2], axis=-1)
    rgba = np.dstack([rgb, GREY])
    for name, values in (("rgb.png", rgb), ("rgba.png", rgba)):
        np.testing.assert_array_equal(read_image(save_png(tmp_path / name, values)).values, rgb.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2"])
def test_tiff_keeps_its_values_and_number_type(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype))
    values = read_image(tmp_path / "a.tif").values
    np.testing.assert_array_equal(values, GREY[None])
    assert values.dtype == np.dtype(dtype).newbyteorder("=")


def test_sixteen_bit_png_keeps_values_above_255(tmp_path: Path) -> None:
    values = GREY.astype(np.uint16) * 1000
    np.testing.assert_array_equal(read_image(save_png(tmp_path / "a.png", values)).values, values[None])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_pages_are_the_first_axis_of_space(tmp_path: Path, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, compression=compression, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values, STACK[None])


def test_lzw_tiff_stack_is_read_without_a_further_package(tmp_path: Path) -> None:
    pages = [Image.fromarray(page) for page in STACK]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values, STACK[None])


def test_named_channel_axis_of_a_tiff_is_no_axis_of_space(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": "CYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif").values, STACK)


def test_tiff_with_time_and_depth_is_refused_by_its_axes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.stack([STACK, STACK]), metadata={"axes": "TZYX"})
    with pytest.raises(FileFaultError, match=r"axes TZYX of sizes \(2, 3, 5, 7\)"):
        read_image(tmp_path / "a.ome.tif")


def test_ome_header_that_names_a_second_file_does_not_have_it_read(tmp_path: Path) -> None:
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate("ab")
    )
    sizes = 'DimensionOrder="XYZCT" Type="uint8" SizeX="7" SizeY="5" SizeZ="2" SizeC="1" SizeT="1"'
    for z, name in enumerate("ab"):
        header = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{z}"><Image ID="Image:0"><Pixels ID="Pixels:0" {sizes}>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", GREY + z, description=header, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif").values, GREY[None])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_keeps_voxel_order_spacing_and_affine(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / name)
    volume = read_image(tmp_path / name)
    np.testing.assert_array_equal(volume.values, values[None])
    assert volume.spacing == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_nifti_scale_factor_is_applied_and_a_fourth_axis_is_channels(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2), np.eye(4))
    image.header.set_slope_inter(2.0, 1.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    values = read_image(tmp_path / "a.nii.gz").values
    assert values.shape == (2, 2, 3, 4)
    assert values[1, 0, 0, 1] == 3 * 2 + 1


def test_mask_of_equal_channels_is_read_as_one(tmp_path: Path) -> None:
    path = save_png(tmp_path / "m.png", np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(read_mask(path).values, GREY)


def test_coloured_mask_is_refused(tmp_path: Path) -> None:
    path = save_png(tmp_path / "m.png", np.stack([GREY, GREY, GREY + 1], axis=-1))
    with pytest.raises(FileFaultError, match="3 channels that differ; save it as one channel"):
        read_mask(path)


def test_palette_mask_gives_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 3).convert("P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, GREY % 3)


def test_float_mask_of_whole_numbers_is_compacted_and_others_are_refused(tmp_path: Path) -> None:
    whole, broken = np.zeros((2, 3, 4)), np.full((2, 3, 4), 0.5)
    whole[0, 0, 0] = 7
    nibabel.save(nibabel.Nifti1Image(whole, np.eye(4)), tmp_path / "m.nii.gz")
    nibabel.save(nibabel.Nifti1Image(broken, np.eye(4)), tmp_path / "n.nii.gz")
    values = read_mask(tmp_path / "m.nii.gz").values
    assert values.dtype == np.uint8
    assert values[0, 0, 0] == 7
    with pytest.raises(FileFaultError, match=r"holds 0\.5 at 24 voxels; class values are whole numbers"):
        read_mask(tmp_path / "n.nii.gz")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz"])
def test_truncated_and_empty_files_are_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    values = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    if "nii" in name:
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    elif name == "a.tif":
        tifffile.imwrite(path, values)
    else:
        save_png(path, values)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFaultError, match="cannot be read: "):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(FileFaultError, match="cannot be read: the file is empty"):
        read_image(path)


def test_other_content_under_a_png_name_is_not_decoded(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(FileFaultError, match=r"cannot identify image file 'a\.png'"):
        read_image(tmp_path / "a.png")


def test_size_in_the_header_above_the_limit_is_refused_before_decoding(tmp_path: Path) -> None:
    path = empty_png(tmp_path / "a.png", 12_000, 12_000)
    with pytest.raises(
        FileFaultError, match="12000 x 12000 x 1 = 144000000 values by its header; allowed are 1 to 134"
    ):
        read_image(path)
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack")
    with pytest.raises(FileFaultError, match="3 x 5 x 7 = 105 values"):
        read_image(tmp_path / "a.tif", max_voxels=104)


def test_decompression_bomb_of_pillow_is_a_named_fault(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="decompression bomb"):
        read_image(empty_png(tmp_path / "a.png", 60_000, 60_000), max_voxels=2**40)


def test_gz_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 1024))
    header.set_data_dtype(np.uint8)
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        stream.write(bytes(2**25))
    assert path.stat().st_size < 2**20
    with pytest.raises(FileFaultError, match="1024 x 1024 x 1024 = 1073741824 values by its header"):
        read_image(path)


def test_gz_bomb_in_front_of_the_voxels_is_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    header["vox_offset"] = 1e9
    with gzip.open(tmp_path / "a.nii.gz", "wb") as stream:
        stream.write(header.binaryblock + bytes(500))
    with pytest.raises(FileFaultError, match="puts the voxels at byte 1000000000"):
        read_image(tmp_path / "a.nii.gz")


def test_deflate_bomb_in_a_tiff_is_refused(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(2**24))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(iter([packed]), shape=(64, 64), dtype=np.uint8, compression="zlib", rowsperstrip=64)
    with pytest.raises(FileFaultError, match="hold more than the 4096 bytes"):
        read_image(tmp_path / "a.tif")


def test_unbounded_tiff_compression_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression="lzma")
    with pytest.raises(FileFaultError, match="compression LZMA is not supported; save it with one of"):
        read_image(tmp_path / "a.tif")


def test_missing_nibabel_is_named_with_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    real_import = builtins.__import__

    def without_nibabel(name: str, *args: object, **kwargs: object) -> object:
        if name == "nibabel":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_nibabel)
    with pytest.raises(ImportError, match=r"a.nii.gz: NIfTI files need nibabel; .*pip install 'ics-apps\[medical\]'"):
        read_image(tmp_path / "a.nii.gz")
