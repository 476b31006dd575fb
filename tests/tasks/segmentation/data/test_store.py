"""Arrays on disk: made once, whole or not there, never more than the limit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ics_apps.tasks.segmentation.data.store import ArrayStore, array_name


def never() -> np.ndarray:
    raise AssertionError("the array was made again")


def test_an_array_is_made_once_and_then_mapped(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    first = ArrayStore(tmp_path / "new", 10**6).array("a", lambda: values)
    second = ArrayStore(tmp_path / "new", 10**6).array("a", never)
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, values)
    np.testing.assert_array_equal(second, values)


def test_beyond_the_limit_nothing_is_written(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path, 2000)
    store.array("a", lambda: np.zeros(200))
    assert store.array("b", lambda: np.ones(200)).sum() == 200
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_file_cut_short_is_made_again(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path, 10**6)
    store.array("a", lambda: np.zeros(200))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:300])
    assert store.array("a", lambda: np.ones(200)).sum() == 200


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="disk full"):
        ArrayStore(tmp_path, 10**6).array("a", lambda: np.zeros(3))
    assert list(tmp_path.iterdir()) == []


def test_the_name_changes_with_content_time_and_options(tmp_path: Path) -> None:
    file = tmp_path / "a.nii"
    file.write_bytes(b"x")
    os.utime(file, ns=(1, 1))
    name = array_name([file], "RAS")
    assert array_name([file], "RAS") == name
    assert array_name([file], "none") != name
    os.utime(file, ns=(1, 2))
    assert array_name([file], "RAS") != name
    file.write_bytes(b"xy")
    os.utime(file, ns=(1, 1))
    assert array_name([file], "RAS") != name


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x")
    name = array_name([tmp_path], "")
    (tmp_path / "b.dcm").write_bytes(b"x")
    assert array_name([tmp_path], "") != name
