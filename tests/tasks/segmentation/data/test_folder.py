"""`ImageMaskFolderData`: what it yields, and that each fault is told with file and reason before training."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ics_apps.tasks.segmentation.data import DataError, ImageMaskFolderData

Make = Callable[..., Path]


def data(root: Path, **options: Any) -> ImageMaskFolderData:
    options = {"patch_size": 16, "batch_size": 3} | options
    return ImageMaskFolderData(str(root), **options)


def faults(root: Path, **options: Any) -> list[str]:
    """The lines of the error, without the head line."""
    with pytest.raises(DataError) as caught:
        data(root, **options).setup("fit")
    head, *lines = str(caught.value).splitlines()
    assert head == f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in {root}:"
    return [line.strip() for line in lines]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def save_volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def volumes(root: Path, number: int = 2) -> Path:
    rng = np.random.default_rng(0)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for i in range(number):
        image = rng.normal(size=(9, 8, 7 + i)).astype(np.float32)
        save_volume(root / "images" / f"v{i}.nii.gz", image, affine)
        save_volume(root / "masks" / f"v{i}.nii.gz", (image > 1).astype(np.uint8), affine)
    return root


def test_batches_follow_the_contract(make_dataset: Make) -> None:
    module = data(make_dataset("abcde"))
    module.setup("fit")
    assert (module.dim, module.in_channels) == (2, 1)
    assert (module.class_names, module.mask_values) == (["background", "foreground"], [0, 255])
    train = next(iter(module.train_dataloader()))
    assert train["image"].shape == (3, 1, 16, 16)
    assert train["mask"].shape == (3, 16, 16)
    assert (train["image"].dtype, train["mask"].dtype) == (torch.float32, torch.int64)
    whole = next(iter(module.val_dataloader()))
    assert whole["image"].shape == (1, 1, 20, 24)
    assert whole["mask"].shape == (1, 20, 24)
    assert whole["case"] == ["c"]
    assert whole["spacing"].tolist() == [[1.0, 1.0]]
    assert [batch["case"] for batch in module.test_dataloader()] == [["c"]]


def test_classes_name_the_values_and_the_first_is_the_background(make_dataset: Make) -> None:
    root = make_dataset("ab")
    module = data(root, classes={"foreground": 255, "rest": 0})
    module.setup("fit")
    mask = next(iter(module.val_dataloader()))["mask"][0]
    assert mask[0, 0] == 0
    assert mask[-1, -1] == 1
    assert module.class_fractions == {"foreground": 0.25, "rest": 0.75}


def test_foreground_above_one_half_is_warned_about(make_dataset: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = make_dataset("ab")
    data(root).setup("fit")
    assert warned(caplog) == []
    data(root, classes={"foreground": 255, "rest": 0}).setup("fit")
    (line,) = warned(caplog)
    assert line.startswith("class 'rest' covers 75.0 % of the voxels: is it the background?")


def test_sizes_may_differ_between_cases(make_dataset: Make, png: Callable[..., Path]) -> None:
    root = make_dataset("abc")
    for folder in ("images", "masks"):
        png(root / folder / "d.png", np.eye(13, 40, dtype=np.uint8) * 255)
    module = data(root)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["image"].shape == (3, 1, 16, 16)


def test_epoch_is_sixteen_patches_a_case_in_full_batches(make_dataset: Make) -> None:
    module = data(make_dataset("abcde"))
    module.setup("fit")
    sizes = [len(batch["image"]) for batch in module.train_dataloader()]
    assert sizes == [3] * 22  # 4 cases x 16 = 64 patches = 21.3 batches
    few = data(make_dataset("abcde"), patches_per_epoch=4)
    few.setup("fit")
    assert len(few.train_dataloader()) == 2


def test_test_part_is_used_where_there_is_one(make_dataset: Make) -> None:
    module = data(make_dataset("abcde"), test_fraction=0.2)
    module.setup("test")
    assert [batch["case"] for batch in module.test_dataloader()] == [["a"]]
    assert "test uses val" not in module.split_note


def test_nifti_cases_are_volumes_with_their_spacing(tmp_path: Path) -> None:
    module = data(volumes(tmp_path, 3), patch_size=[4, 8, 6])
    module.setup("fit")
    assert module.dim == 3
    assert next(iter(module.train_dataloader()))["image"].shape == (3, 1, 4, 8, 6)
    assert next(iter(module.val_dataloader()))["spacing"].tolist() == [[1.0, 2.0, 3.0]]


def test_tiff_stack_with_nifti_mask_is_a_pair(tmp_path: Path) -> None:
    for stem in "ab":
        stack = np.random.default_rng(0).integers(0, 60_000, (5, 9, 8), dtype=np.uint16)
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{stem}.tif", stack, photometric="minisblack")
        save_volume(tmp_path / "masks" / f"{stem}.nii.gz", (stack > 50_000).astype(np.uint8))
    module = data(tmp_path)
    module.setup("fit")
    assert next(iter(module.val_dataloader()))["image"].shape == (1, 1, 5, 9, 8)


def test_cases_beyond_the_memory_limit_are_read_at_each_use(
    make_dataset: Make, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_dataset("abcde")
    kept, bare = data(root), data(root, cache_mb=0)
    kept.setup("fit")
    bare.setup("fit")
    assert warned(caplog) == ["5 of 5 cases exceed cache_mb and are read at each use."]
    assert bare.parts["train"][0].image is None
    for a, b in zip(kept.train_dataloader(), bare.train_dataloader(), strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])


def test_a_patch_larger_than_a_case_is_said(make_dataset: Make, caplog: pytest.LogCaptureFixture) -> None:
    data(make_dataset("ab"), patch_size=32).setup("fit")
    assert warned(caplog) == ["patch_size (32, 32) exceeds 2 cases (a first): their edges are reflected."]


def test_predict_takes_the_images_of_a_folder(make_dataset: Make, tmp_path: Path) -> None:
    root = make_dataset("ab")
    new = tmp_path / "new"
    shutil.copytree(root / "images", new)
    module = data(root, predict_root=str(new))
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert [set(batch) for batch in batches] == [{"image", "case", "source", "grid"}] * 2
    assert [batch["source"] for batch in batches] == [[str(new / "a.png")], [str(new / "b.png")]]
    assert module.class_names == ["background", "foreground"]


def test_predict_needs_no_masks(make_dataset: Make) -> None:
    root = make_dataset("ab")
    shutil.rmtree(root / "masks")
    module = data(root)
    module.setup("predict")
    assert [batch["case"] for batch in module.predict_dataloader()] == [["a"], ["b"]]
    assert (module.dim, module.in_channels, module.class_names, module.split_note) == (2, 1, [], "")
    named = data(root, classes={"out": 0, "in": 255})
    named.setup("predict")
    assert (named.class_names, named.mask_values) == (["out", "in"], [0, 255])


def test_predict_refuses_images_unlike_those_trained_on(make_dataset: Make, tmp_path: Path, png: Any) -> None:
    root = make_dataset("ab")
    png(tmp_path / "new" / "c.png", np.zeros((8, 8, 3), np.uint8))
    module = data(root, predict_root=str(tmp_path / "new"))
    module.setup("fit")
    with pytest.raises(DataError, match=r"c.png: 3 channels, but asked for are 1"):
        module.setup("predict")


def test_module_can_be_pickled_after_setup(make_dataset: Make) -> None:
    module = data(make_dataset("ab"))
    module.setup("fit")
    copy = pickle.loads(pickle.dumps(module))  # noqa: S301 - our own bytes
    a, b = (next(iter(m.train_dataloader())) for m in (module, copy))
    assert torch.equal(a["image"], b["image"])


def test_checking_writes_nothing(make_dataset: Make) -> None:
    root = make_dataset("ab")
    before = sorted(root.rglob("*"))
    data(root).setup("fit")
    assert sorted(root.rglob("*")) == before


# What is refused, one test a kind.


def test_all_faults_are_told_at_once(make_dataset: Make, png: Callable[..., Path]) -> None:
    root = make_dataset("abcdef")
    (root / "masks" / "a.png").unlink()
    (root / "images" / "b.png").unlink()
    png(root / "masks" / "c.png", np.zeros((20, 23), np.uint8))
    (root / "images" / "d.png").write_text("no image")
    bad = np.asarray(Image.open(root / "masks" / "e.png")).copy()
    bad[:2, 0] = 7
    png(root / "masks" / "e.png", bad)
    assert faults(root, classes={"background": 0, "cell": 255}) == [
        "images/a.png: no mask with the stem 'a' in masks/",
        "masks/b.png: no image with the stem 'b' in images/",
        "masks/c.png: the mask is 20 x 23 but its image is 20 x 24",
        "images/d.png: cannot be read: cannot identify image file 'd.png'",
        "masks/e.png: mask value 7 at 2 voxels is outside the classes (background=0, cell=255)",
    ]


def test_mask_value_absent_from_the_training_masks_is_named(make_dataset: Make, png: Callable[..., Path]) -> None:
    root = make_dataset("abcde")
    bad = np.zeros((20, 24), np.uint8)
    bad[0, :3] = 128
    png(root / "masks" / "c.png", bad)  # c is the val case
    assert faults(root) == [
        "masks/c.png: mask value 128 at 3 voxels is outside the classes (background=0, foreground=255, "
        "taken from the training masks; name all of them with classes)"
    ]


def test_grey_level_masks_are_refused(make_dataset: Make, png: Callable[..., Path]) -> None:
    root = make_dataset("ab")
    for stem in "ab":
        png(root / "masks" / f"{stem}.png", np.arange(480, dtype=np.uint16).astype(np.uint8).reshape(20, 24))
    (line,) = faults(root)
    assert "the training masks hold 256 distinct values, more than 32" in line


def test_jpeg_masks_with_blurred_values_are_refused(make_dataset: Make) -> None:
    root = make_dataset("ab")
    for stem in "ab":
        mask = np.zeros((20, 24), np.uint8)
        mask[:9, :9] = 255
        Image.fromarray(mask).save(root / "masks" / f"{stem}.jpg", quality=30)
        (root / "masks" / f"{stem}.png").unlink()
    (line,) = faults(root)
    assert line.startswith("masks/a.jpg: JPEG blurs labels: the training masks hold ")


def test_coloured_mask_is_refused_by_name(make_dataset: Make, png: Callable[..., Path]) -> None:
    root = make_dataset("ab")
    png(root / "masks" / "b.png", np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    assert faults(root)[0].startswith("masks/b.png: the mask has 3 channels that differ")


def test_nan_in_a_nifti_is_refused(tmp_path: Path) -> None:
    root = volumes(tmp_path / "v", 3)
    broken = np.zeros((9, 8, 8), np.float32)
    broken[0, 0, :2] = np.nan
    save_volume(root / "images" / "v1.nii.gz", broken, np.diag([1.0, 2.0, 3.0, 1.0]))
    assert faults(root) == ["images/v1.nii.gz: NaN or infinite at 2 of 576 voxels"]


def test_mask_with_another_affine_is_refused(tmp_path: Path) -> None:
    root = volumes(tmp_path / "v", 3)
    mask = np.asarray(nibabel.load(root / "masks" / "v0.nii.gz").dataobj)
    moved = np.diag([1.0, 2.0, 3.0, 1.0])
    moved[0, 3] = 10
    save_volume(root / "masks" / "v0.nii.gz", mask, moved)
    assert faults(root) == [
        "masks/v0.nii.gz: the affines of mask and image differ by 10 (allowed is 0.001); resample the mask to the image"
    ]
    save_volume(root / "masks" / "v0.nii.gz", mask, np.diag([1.0, 2.0, 4.0, 1.0]))
    assert faults(root) == ["masks/v0.nii.gz: the mask has spacing 1 x 2 x 4 mm but its image has 1 x 2 x 3 mm"]


def test_other_number_of_channels_is_refused(make_dataset: Make, png: Callable[..., Path]) -> None:
    root = make_dataset("abc")
    png(root / "images" / "b.png", np.zeros((20, 24, 3), np.uint8))
    assert faults(root) == ["images/b.png: 3 channels, but 2 of 3 cases have 1"]
    assert len(faults(root, channels=3)) == 2


def test_volume_among_images_is_refused(make_dataset: Make) -> None:
    root = make_dataset("abc")
    for folder in ("images", "masks"):
        save_volume(root / folder / "v.nii.gz", np.zeros((4, 4, 4), np.uint8))
    assert faults(root) == ["images/v.nii.gz: 3 axes of space, but 3 of 4 cases have 2"]
    assert len(faults(root, dim=3)) == 3


def test_file_above_max_voxels_is_refused(make_dataset: Make) -> None:
    lines = faults(make_dataset("ab"), max_voxels=100)
    assert lines[0] == "images/a.png: 20 x 24 x 1 = 480 values by its header; allowed are 1 to 100 (max_voxels)"
    assert len(lines) == 4


def test_empty_folder_is_refused(make_dataset: Make) -> None:
    root = make_dataset("ab")
    for path in (root / "images").iterdir():
        path.unlink()
    (line,) = faults(root)
    assert line.startswith("images: no image in this folder")
    assert line.endswith("it is empty")


def test_missing_root_is_named_with_the_nearest(make_dataset: Make) -> None:
    root = make_dataset("ab")
    wrong = root.parent / "cell"
    (line,) = faults(wrong)
    assert line.startswith(f"{wrong}: no such folder; ")
    assert line.endswith("holds cells/ (did you mean cells/?)")
    file = root / "images" / "a.png"
    assert faults(file) == [f"{file}: is a file; allowed is a folder"]


def test_path_outside_the_root_is_refused(make_dataset: Make) -> None:
    root = make_dataset("ab")
    (root / "split.csv").write_text("image,mask,split\n../x.png,masks/a.png,train\n")
    assert faults(root)[0].startswith("split.csv row 2: ../x.png lies outside of")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"val_fraction": 0.0}, "val_fraction is 0.0"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "a sum below 1"),
        ({"dim": 4}, "dim is 4; allowed are 'auto', 2 and 3"),
        ({"normalize": "zscore"}, "normalize is 'zscore'; allowed are case, none"),
        ({"batch_size": 0}, "batch_size is 0; allowed are 1 and above"),
        ({"patch_size": []}, "patch_size is 0; allowed are 1 and above"),
        ({"patches_per_epoch": 0}, "patches_per_epoch is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"channels": 0}, "channels is 0"),
        ({"classes": {"a": 0}}, "classes names 1 classes"),
        ({"augment": {"flips": True}}, "no option 'flips'; did you mean 'flip'"),
    ],
)
def test_arguments_are_checked_before_any_file(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        data(tmp_path / "nowhere", **options)


def test_patch_size_has_one_number_an_axis(make_dataset: Make) -> None:
    with pytest.raises(ValueError, match=r"patch_size is \[8, 8, 8\], but the data has 2 axes"):
        data(make_dataset("ab"), patch_size=[8, 8, 8]).setup("fit")


def test_loaders_before_setup_say_so(make_dataset: Make) -> None:
    with pytest.raises(RuntimeError, match=r"has no train cases yet; call setup\(\) first"):
        data(make_dataset("ab")).train_dataloader()
