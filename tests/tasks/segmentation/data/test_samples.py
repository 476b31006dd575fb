"""The sample files that ship with the project."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from ics_apps.tasks.segmentation.data import ImageMaskFolderData

SAMPLES = Path(__file__).parents[4] / "data" / "samples"


def test_samples_are_those_that_the_script_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_samples", SAMPLES / "make_samples.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_segmentation(tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert names == sorted(p.relative_to(SAMPLES / "segmentation") for p in (SAMPLES / "segmentation").rglob("*.png"))
    for name in names:
        made, shipped = (
            np.asarray(Image.open(root / name)).astype(int) for root in (tmp_path, SAMPLES / "segmentation")
        )
        # One grey level of room: exp and sin may round otherwise on another processor.
        assert np.abs(made - shipped).max() <= 1


def test_samples_are_small_and_train() -> None:
    root = SAMPLES / "segmentation"
    assert sum(path.stat().st_size for path in root.rglob("*.png")) < 200_000
    data = ImageMaskFolderData(str(root), patch_size=32)
    data.setup("fit")
    assert data.mask_values == [0, 1, 2, 3]
    assert next(iter(data.train_dataloader()))["image"].shape == (8, 1, 32, 32)
