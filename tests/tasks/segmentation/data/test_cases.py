"""Cases in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ics_apps.tasks.segmentation.data.cases import Case, Cases, WholeCases
from ics_apps.tasks.segmentation.data.classes import LabelMap
from ics_apps.tasks.segmentation.data.intensity import moments


def test_moments_are_those_of_each_channel() -> None:
    image = np.random.default_rng(0).integers(0, 60_000, (2, 30, 41), dtype=np.uint16)
    mean, std = moments(image, "case")
    np.testing.assert_allclose(mean, image.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, image.std((1, 2)), rtol=1e-6)
    mean, std = moments(image, "none")
    assert (mean.tolist(), std.tolist()) == ([0, 0], [1, 1])


def test_moments_of_more_than_one_chunk_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ics_apps.tasks.segmentation.data.intensity._CHUNK", 100)
    image = np.random.default_rng(0).normal(1000, 1, (1, 37, 41)).astype(np.float32)
    mean, std = moments(image, "case")
    assert mean[0] == pytest.approx(image.mean(dtype=np.float64), rel=1e-6)
    assert std[0] == pytest.approx(image.std(dtype=np.float64), rel=1e-5)


def test_constant_channel_becomes_zero() -> None:
    image = np.full((1, 4, 4), 9, np.uint8)
    case = Case("a", (4, 4), (1.0, 1.0), *moments(image, "case"), image)
    assert not case.normalized(image).any()


def test_case_on_disk_reads_the_same_as_one_in_memory(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (6, 7), dtype=np.uint8)
    labels = LabelMap({"inside": 255, "membrane": 0})
    mask = np.where(image > 100, 255, 0).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    statistics = moments(image[None], "case")
    common: dict[str, Any] = {"image_path": tmp_path / "a.png", "mask_path": tmp_path / "m.png"}
    kept = Case("a", (6, 7), (1.0, 1.0), *statistics, image[None], labels.to_index(mask), **common)
    bare = Case("a", (6, 7), (1.0, 1.0), *statistics, **common)
    items = [WholeCases(Cases([case], labels))[0] for case in (kept, bare)]
    for name in ("image", "mask", "spacing"):
        assert torch.equal(items[0][name], items[1][name])
    assert items[0]["image"].mean().abs() < 1e-6
    assert items[0]["mask"].dtype == torch.int64


def test_case_without_mask_says_so() -> None:
    case = Case("a", (2, 2), (1.0, 1.0), *moments(np.zeros((1, 2, 2)), "none"))
    with pytest.raises(ValueError, match="case a has no mask"):
        Cases([case]).mask(0)
    with pytest.raises(ValueError, match="case a has neither an image in memory nor a file"):
        Cases([case]).image(0)
