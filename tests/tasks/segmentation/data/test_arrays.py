"""NPY and NPZ: which axes are what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ics_apps.tasks.segmentation.data.formats import read_image, read_mask
from ics_apps.tasks.segmentation.data.volume import FileFaultError

VOLUME = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("shape", "as_read"), [((4, 5), (1, 4, 5)), ((3, 4, 5), (1, 3, 4, 5)), ((2, 3, 4, 5),) * 2])
def test_axes_of_an_npy_follow_from_their_number(tmp_path: Path, shape: tuple[int, ...], as_read: tuple) -> None:
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    volume = read_image(tmp_path / "a.npy")
    assert volume.values.dtype == np.float32
    np.testing.assert_array_equal(volume.values, values.reshape(as_read))


def test_one_npz_may_hold_image_mask_and_spacing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", image=VOLUME, mask=VOLUME > 7, spacing=np.array([1.0, 2.0, 3.0]))
    image, mask = read_image(path), read_mask(path)
    np.testing.assert_array_equal(image.values, VOLUME[None])
    np.testing.assert_array_equal(mask.values, VOLUME > 7)
    assert image.spacing == mask.spacing == (1.0, 2.0, 3.0)


def test_two_spacings_make_the_first_of_three_axes_the_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", data=VOLUME, spacing=np.array([0.5, 0.5]))
    assert read_image(path).values.shape == (3, 4, 5)
    assert read_image(path).spacing == (0.5, 0.5)


def test_what_is_no_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    faults = {
        "the NPZ has no image and no data; it holds x, y": {"x": VOLUME, "y": VOLUME},
        "1 axes; allowed are 2 or 3": {"image": np.zeros(3)},
        "3 axes and 1 spacings": {"image": VOLUME, "spacing": np.array([1.0])},
        "allowed are numbers above 0": {"image": VOLUME, "spacing": np.array([1.0, 0.0, 1.0])},
        "Python objects": {"image": np.array([[{}, None]])},
    }
    for reason, arrays in faults.items():
        with pytest.raises(FileFaultError, match=reason):
            read_image(save(tmp_path / "a.npz", **arrays))


def test_size_is_known_from_the_header(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match=r"60 values by its header; allowed are 1 to 59"):
        read_image(save(tmp_path / "a.npz", image=VOLUME), 59)
    np.save(tmp_path / "b.npy", VOLUME)
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-10])
    with pytest.raises(FileFaultError, match="holds 55 of the 60 values"):
        read_image(tmp_path / "b.npy")
