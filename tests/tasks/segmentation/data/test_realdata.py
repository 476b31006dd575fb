"""The loaders on real files: ISBI-2012 (PNG), axons (three classes), spinal cord MRI (NIfTI)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from ics_apps.tasks.segmentation.data import ImageMaskFolderData
from ics_apps.tasks.segmentation.data.grid import restore

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


def test_spinal_cord_index_gives_one_grid_for_all_and_truth_in_the_files_own() -> None:
    parts = {"unf01_t1w": "train", "unf01_t2star": "train", "sct_t1w": "train+val"}
    data = ImageMaskFolderData(
        str(dataset("spinal_cord")), split="index.csv", rows={"target": "cord"}, parts=parts, patch_size=[48, 48, 16],
        classes={"background": 0, "cord": 1}, orientation="RAS", spacing="median", foreground=0.5, batch_size=4,
        patches_per_epoch=8,
    )  # fmt: skip
    data.setup("fit")
    assert data.split_note == (
        "index.csv: 6 train, 1 val, 1 test cases; sct_t1w in train and val, so the figures of val measure fit"
    )
    assert data.preparation is not None
    assert data.preparation.spacing == pytest.approx((1, 1, 1), abs=1e-3)
    shapes = {case.name: case.shape for part in data.parts.values() for case in part}
    assert shapes["sct_t2"] == (52, 60, 55)  # PSR in its file, 60 x 55 x 52
    assert shapes["sct_mt0"][2] == 85  # 5 slices of 17 mm
    cases = data.parts["train"]
    for i, case in enumerate(cases):
        logits = torch.nn.functional.one_hot(torch.from_numpy(cases.mask(i)).long(), 2).movedim(-1, 0)[None].float()
        found = restore(logits, case.grid).argmax(1)[0].numpy() == 1
        truth = cases.file_mask(i) == 1
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
    batch = next(iter(data.train_dataloader()))
    assert (batch["mask"][1::2] == 1).flatten(1).any(1).all()
