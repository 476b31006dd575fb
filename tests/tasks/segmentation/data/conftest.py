"""Small datasets on disk, made anew for each test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def write_png(path: Path, values: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def blob(seed: int, size: tuple[int, int] = (20, 24)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A noisy image and its mask with the values 0 and 255; 255 covers a quarter."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=np.uint8)
    mask[: size[0] // 2, : size[1] // 2] = 255
    image = (mask // 2 + rng.integers(0, 60, size)).astype(np.uint8)
    return image, mask


@pytest.fixture
def png() -> Callable[[Path, NDArray[np.uint8]], Path]:
    return write_png


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """`make_dataset(["a", "b"])` writes images/ and masks/ with these stems below a folder and returns it."""

    def make(stems: Sequence[str], below: str = "cells") -> Path:
        root = tmp_path / below
        for number, stem in enumerate(stems):
            image, mask = blob(number)
            write_png(root / "images" / f"{stem}.png", image)
            write_png(root / "masks" / f"{stem}.png", mask)
        return root

    return make
