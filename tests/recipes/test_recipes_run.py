"""Every shipped recipe is parsed, and trained for two steps through the command line on data the test makes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from ics_apps.cli import main
from ics_apps.cli.recipes import list_recipes
from ics_apps.runs.checkpoints import read_checkpoint

TASK_RECIPES = [recipe.name for recipe in list_recipes() if not recipe.name.startswith("_")]
OVERLAYS = [recipe.name for recipe in list_recipes() if recipe.name.startswith("_")]
TWO_STEPS = [
    "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
    "--trainer.limit_test_batches", "1", "--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _small_data(name: str, folder: Path) -> list[str]:
    """Flags that replace a recipe's own data, which the test does not have, by a folder the test makes."""
    if name == "segmentation/base" or not name.startswith("segmentation/"):
        return ["--data.size", "32", "--data.num_cases", "2", "--data.num_val", "1", "--data.num_test", "1"]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    if name == "segmentation/spinal_cord":
        return _small_volumes(folder)
    for number in range(3):
        mask = np.full((32, 32), 255, np.uint8)
        mask[10:20] = 0
        Image.fromarray(mask).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return ["--data.root", str(folder), "--data.patch_size", "32"]


def _small_volumes(folder: Path) -> list[str]:
    """Three volumes with their table, and the flags that go with them."""
    rows = ["image,mask,split,target"]
    mask = np.zeros((16, 16, 8), np.uint8)
    mask[6:10, 6:10] = 1
    for stem in ("unf01_t1w", "unf01_t2star", "sct_t1w"):
        for part in ("images", "masks"):
            volume = mask if part == "masks" else mask.astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / part / f"{stem}.nii.gz")
        rows.append(f"images/{stem}.nii.gz,masks/{stem}.nii.gz,train,cord")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return ["--data.root", str(folder), "--data.patch_size", "16"]


@pytest.mark.parametrize("name", TASK_RECIPES)
def test_recipe_runs_two_steps_and_its_checkpoint_is_plain(name: str, tmp_path: Path) -> None:
    assert main(["run", name, "--out", "run", *TWO_STEPS, *_small_data(name, tmp_path / "data")]) == 0
    assert read_checkpoint(tmp_path / "run/checkpoints/best.ckpt")["state_dict"]
    assert (tmp_path / "run/report.html").is_file()


# The base has a batch norm, which lets samples of a batch see each other.
@pytest.mark.filterwarnings("ignore:LeakageCheck")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_runs_on_the_base(overlay: str, tmp_path: Path) -> None:
    small = _small_data("segmentation/base", tmp_path)
    assert main(["fit", "segmentation/base", overlay, "--out", "run", *TWO_STEPS, *small]) == 0
