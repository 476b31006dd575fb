"""The loaders on real files: ISBI-2012 (PNG), axons (three classes), spinal cord MRI (NIfTI)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ics_apps.tasks.segmentation.data import ImageMaskFolderData

pytestmark = pytest.mark.realdata
FOLDER = Path(os.environ.get("ICS_APPS_DATA", Path(__file__).parents[5] / "shared" / "data"))


def dataset(name: str) -> Path:
    root = FOLDER / "segmentation" / name
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}; set ICS_APPS_DATA to the folder that holds segmentation/")
    return root


def test_isbi_splits_24_to_6_and_membrane_covers_22_percent() -> None:
    data = ImageMaskFolderData(str(dataset("isbi2012_membrane")), classes={"inside": 255, "membrane": 0})
    data.setup("fit")
    assert data.split_note == "split.csv: 24 train, 6 val, 0 test cases; no test part, so test uses val"
    assert round(data.class_fractions["membrane"], 3) == 0.220
    assert [batch["case"][0] for batch in data.val_dataloader()] == ["24", "25", "26", "27", "28", "29"]
    assert len(data.train_dataloader()) == 24 * 16 / 8


def test_axon_images_of_unlike_sizes_have_three_classes() -> None:
    data = ImageMaskFolderData(str(dataset("axon_sem")), classes={"background": 0, "axon": 1, "myelin": 2})
    data.setup("fit")
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [2, 1, 1]
    assert 0.20 < data.class_fractions["axon"] < 0.28


def test_spinal_cord_volumes_train_in_three_dimensions(tmp_path: Path) -> None:
    source = dataset("spinal_cord")
    for name in ("sct_t2", "sct_t1w", "sct_mt0"):
        for folder, suffix in (("images", ""), ("masks", "_cord")):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(source / folder / f"{name}{suffix}.nii.gz", tmp_path / folder / f"{name}.nii.gz")
    data = ImageMaskFolderData(str(tmp_path), patch_size=[24, 24, 8], batch_size=2, patches_per_epoch=2)
    data.setup("fit")
    assert (data.dim, data.in_channels, data.mask_values) == (3, 1, [0, 1])
    spacings = {case.name: case.spacing for part in data.parts.values() for case in part}
    assert spacings["sct_mt0"] == pytest.approx((0.84, 0.84, 17.0), abs=0.01)
    assert next(iter(data.train_dataloader()))["image"].isfinite().all()
