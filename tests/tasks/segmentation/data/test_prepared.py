"""`ImageMaskFolderData` with more than plain pairs: grids, CT, channels, labels, unlabelled voxels, a store on disk."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nibabel
import numpy as np
import pytest
import torch

from ics_apps.tasks.segmentation.data import DataError, ImageMaskFolderData
from ics_apps.tasks.segmentation.data.grid import restore
from ics_apps.tasks.segmentation.data.preparation import Preparation
from ics_apps.tasks.segmentation.targets import IGNORE

LAS, RAS = np.diag([-1.0, 1, 1, 1]), np.eye(4)


def save(path: Path, values: np.ndarray, affine: np.ndarray = RAS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def scan(seed: int, shape: tuple[int, int, int] = (12, 10, 8)) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(shape, np.uint8)
    mask[2:7, 3:6, 2:5] = 1
    return (np.random.default_rng(seed).normal(100, 20, shape) + 300.0 * mask).astype(np.float32), mask


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four scans: two ways of the axes, two voxel sizes."""
    for i, (affine, size) in enumerate([(RAS, 1.0), (LAS, 1.0), (RAS, 2.0), (LAS, 1.0)]):
        image, mask = scan(i)
        scaled = affine @ np.diag([size, size, size, 1])
        save(tmp_path / "images" / f"v{i}.nii.gz", image, scaled)
        save(tmp_path / "masks" / f"v{i}.nii.gz", mask, scaled)
    return tmp_path


def module(root: Path, **options: Any) -> ImageMaskFolderData:
    return ImageMaskFolderData(str(root), **({"patch_size": 6, "batch_size": 2, "patches_per_epoch": 6} | options))


def fitted(root: Path, **options: Any) -> ImageMaskFolderData:
    data = module(root, **options)
    data.setup("fit")
    return data


def everything(data: ImageMaskFolderData) -> list[tuple[Any, int]]:
    return [(cases, i) for cases in data.parts.values() for i in range(len(cases))]


def test_mixed_axes_and_spacings_are_said(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(mixed)
    lines = [record.getMessage() for record in caplog.records]
    assert "the axes of the cases run in 2 ways (LAS, RAS); orientation: RAS makes them one." in lines
    assert "voxel sizes differ 2-fold between the cases; spacing: median resamples them to one." in lines
    caplog.clear()
    fitted(mixed, orientation="RAS", spacing="median")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_cases_come_to_one_grid_and_truth_stays_on_the_file_s(mixed: Path) -> None:
    data = fitted(mixed, orientation="RAS", spacing="median")
    assert data.preparation == Preparation("RAS", (1.0, 1.0, 1.0), ("case",), (None,))
    shapes = {case.name: case.shape for part in data.parts.values() for case in part}
    assert shapes == {"v0": (12, 10, 8), "v1": (12, 10, 8), "v2": (24, 20, 16), "v3": (12, 10, 8)}
    for cases, i in everything(data):
        mask = nibabel.load(cases[i].mask_path).get_fdata()
        np.testing.assert_array_equal(cases.file_mask(i), mask)
        logits = torch.nn.functional.one_hot(torch.from_numpy(cases.mask(i)).long(), 2).movedim(-1, 0)[None].float()
        np.testing.assert_array_equal(restore(logits, cases[i].grid).argmax(1)[0].numpy(), mask)
    for batch in data.val_dataloader():
        assert batch["mask"].shape[1:] == batch["grid"][0].file_shape
        assert batch["image"].shape[2:] == batch["grid"][0].shape


def test_cases_on_disk_are_prepared_like_those_in_memory(mixed: Path, tmp_path: Path) -> None:
    options = {"orientation": "RAS", "spacing": "median", "foreground": 0.5, "normalize": "ct"}
    kept, bare = fitted(mixed, **options), fitted(mixed, cache_mb=0, **options)
    stored = [fitted(mixed, cache_mb=0, cache_dir=str(tmp_path / "cache"), **options) for _ in range(2)]
    for batches in zip(*[data.train_dataloader() for data in (kept, bare, *stored)], strict=True):
        for batch in batches[1:]:
            assert torch.equal(batch["image"], batches[0]["image"])
            assert torch.equal(batch["mask"], batches[0]["mask"])
    assert list((tmp_path / "cache").glob("*.npy"))
    for one, other in zip(kept.val_dataloader(), stored[0].val_dataloader(), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["mask"], other["mask"])


def test_what_fits_into_memory_is_not_written(mixed: Path, tmp_path: Path) -> None:
    next(iter(fitted(mixed, cache_dir=str(tmp_path / "cache")).train_dataloader()))
    assert not (tmp_path / "cache").exists()


def test_ct_is_learnt_from_the_training_foreground_and_kept_for_prediction(mixed: Path, tmp_path: Path) -> None:
    data = fitted(mixed, normalize="ct", orientation="RAS", spacing="median")
    assert data.preparation is not None
    (ct,) = data.preparation.ct
    assert ct is not None
    cases = data.parts["train"]
    values = np.concatenate([nibabel.load(c.image_path).get_fdata()[2:7, 3:6, 2:5].ravel() for c in cases])
    assert ct[2:] == pytest.approx((values.mean(), values.std()), rel=1e-3)
    save(tmp_path / "new" / "x.nii.gz", scan(9)[0], LAS @ np.diag([2.0, 2, 2, 1]))
    later = module(
        tmp_path, normalize="ct", orientation="RAS", spacing="median", images="none", masks="none",
        predict_root=str(tmp_path / "new"), classes={"a": 0, "b": 1},
    )  # fmt: skip
    later.setup("predict")
    with pytest.raises(DataError, match="are learnt from training cases, but there are neither such cases"):
        later.predict_dataloader()
    later.load_state_dict(pickle.loads(pickle.dumps(data.state_dict())))  # noqa: S301 - our own bytes
    (batch,) = later.predict_dataloader()
    assert batch["image"].shape == (1, 1, 24, 20, 16)
    low, high = ((edge - ct[2]) / ct[3] for edge in ct[:2])
    assert batch["image"].min().item() == pytest.approx(low, rel=1e-5)  # all of the background lies below
    assert 0 < batch["image"].max() <= high


def test_channels_of_one_case_may_be_files(tmp_path: Path) -> None:
    for stem in "ab":
        image, mask = scan(ord(stem))
        save(tmp_path / "images" / f"{stem}_0000.nii.gz", image)
        save(tmp_path / "images" / f"{stem}_0001.nii.gz", -image)
        save(tmp_path / "masks" / f"{stem}.nii.gz", mask)
    ends = ["_0000", "_0001"]
    data = fitted(tmp_path, channel_files=ends, normalize=["case", "none"])
    assert data.in_channels == 2
    (batch,) = data.val_dataloader()
    assert batch["image"].shape[1] == 2
    assert batch["image"][0, 0].mean().abs() < 1e-4
    assert batch["image"][0, 1].mean() < -100
    data.setup("predict")
    assert [b["case"] for b in data.predict_dataloader()] == [["a"], ["b"]]
    (tmp_path / "images" / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"images/b_0000.nii.gz: the case has no channel b_0001"):
        fitted(tmp_path, channel_files=ends)
    save(tmp_path / "images" / "b_0001.nii.gz", np.zeros((3, 3, 3), np.float32))
    with pytest.raises(DataError, match=r"b_0001.nii.gz is 3 x 3 x 3 but b_0000.nii.gz is 12 x 10 x 8"):
        fitted(tmp_path, channel_files=ends)


@pytest.fixture
def labelled(make_dataset: Callable[..., Path], png: Callable[..., Path]) -> Path:
    root = make_dataset("abc")
    for number, stem in enumerate("abc"):
        png(root / "cords" / f"{stem}.png", np.full((20, 24), 9 * (number != 2), np.uint8))
        spot = np.zeros((20, 24), np.uint8)
        spot[3:7, 5:9] = 255
        png(root / "spots" / f"{stem}.png", spot)
    return root


def test_labels_that_overlap_have_a_folder_each(labelled: Path) -> None:
    data = fitted(labelled, masks={"cord": "cords", "spot": "spots"}, foreground=0.5)
    assert (data.multi_label, data.class_names, data.mask_values) == (True, ["cord", "spot"], [1, 1])
    assert data.class_fractions == pytest.approx({"cord": 2 / 3, "spot": 16 / 480})
    batch = next(iter(data.train_dataloader()))
    assert batch["mask"].shape == (2, 2, 6, 6)
    (whole,) = data.val_dataloader()
    assert whole["mask"].shape == (1, 2, 20, 24)
    assert whole["mask"][0, 1].sum() == 16
    (labelled / "spots" / "b.png").unlink()
    with pytest.raises(DataError, match=r"images/b.png: no mask with the stem 'b' in spots/"):
        fitted(labelled, masks={"cord": "cords", "spot": "spots"})


def test_labels_that_overlap_may_be_channels_of_a_file(tmp_path: Path) -> None:
    for stem in "ab":
        image, mask = scan(ord(stem))
        np.save(_folder(tmp_path / "images") / f"{stem}.npy", image)
        np.save(_folder(tmp_path / "masks") / f"{stem}.npy", np.stack([mask, np.ones_like(mask)]))
    data = fitted(tmp_path, classes=["organ", "body"])
    assert next(iter(data.train_dataloader()))["mask"].shape == (2, 2, 6, 6, 6)
    with pytest.raises(DataError, match="its masks have 2 channels, but the labels organ are named"):
        fitted(tmp_path, classes=["organ"])
    np.save(tmp_path / "masks" / "a.npy", np.stack([2 * mask, np.arange(mask.size).reshape(mask.shape)]))
    with pytest.raises(DataError, match=r"masks/a.npy: channel 1 of the mask holds 0, 1, 2, 3 ...; a label's mask"):
        fitted(tmp_path, classes=["organ", "body"])


def test_labels_and_classes_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="masks names labels and classes is given too"):
        module(tmp_path, masks={"a": "x"}, classes={"a": 0, "b": 1})


def test_unlabelled_voxels_reach_the_loss_as_such(make_dataset: Callable[..., Path], png: Any) -> None:
    root = make_dataset("abc")
    mask = np.zeros((20, 24), np.uint8)
    mask[:5], mask[5:9] = 255, 7
    for stem in "abc":
        png(root / "masks" / f"{stem}.png", mask)
    data = fitted(root, classes={"background": 0, "cell": 7, "ignore": 255}, foreground=1.0)
    assert (data.class_names, data.mask_values) == (["background", "cell"], [0, 7])
    assert data.class_fractions == pytest.approx({"background": 11 / 15, "cell": 4 / 15})
    (whole,) = data.val_dataloader()
    assert whole["mask"][0, :, 0].tolist() == [IGNORE] * 5 + [1] * 4 + [0] * 11
    for batch in data.train_dataloader():
        assert set(batch["mask"].unique().tolist()) <= {IGNORE, 0, 1}
        assert (batch["mask"] == 1).flatten(1).any(1).all()


def test_a_singular_affine_is_named(mixed: Path) -> None:
    image = nibabel.load(mixed / "images" / "v0.nii.gz")
    broken = nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), None)
    broken.header.set_sform(np.diag([1.0, 1, 0, 1]), code=1)
    nibabel.save(broken, mixed / "images" / "v0.nii.gz")
    with pytest.raises(DataError, match=r"images/v0.nii.gz: its affine is singular"):
        fitted(mixed)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"orientation": "LPS"}, "orientation is 'LPS'; allowed are none, RAS"),
        ({"spacing": [1.0, 0.0, 1.0]}, "allowed are 'median', one number above 0 an axis, or null"),
        ({"spacing": "mean"}, "spacing is 'mean'"),
        ({"foreground": 1.5}, "foreground is 1.5; allowed are 0 to 1"),
        ({"cache_dir_mb": 0}, "cache_dir_mb is 0"),
        ({"normalize": ["case", "ctt"]}, "normalize is 'ctt'"),
    ],
)
def test_arguments_are_checked_before_any_file(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        module(tmp_path / "nowhere", **options)


def test_spacing_has_one_number_an_axis_and_ct_needs_foreground(mixed: Path) -> None:
    with pytest.raises(ValueError, match=r"spacing is \[1.0, 1.0\], but the data has 3 axes"):
        fitted(mixed, spacing=[1.0, 1.0])
    for i in range(4):
        mask = nibabel.load(mixed / "masks" / f"v{i}.nii.gz")
        save(mixed / "masks" / f"v{i}.nii.gz", np.zeros(mask.shape, np.uint8), mask.affine)
    with pytest.raises(DataError, match="no training mask has foreground"):
        fitted(mixed, normalize="ct", classes={"background": 0, "organ": 1})


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


class OneWeight(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Conv3d(1, 2, 1)
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch["image"]), batch["mask"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        return None

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["image"])
        return restore(self.net(batch["image"]), batch["grid"][0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*number of training batches")
def test_a_checkpoint_brings_what_was_learnt_to_a_prediction_without_training_cases(mixed: Path) -> None:
    options: dict[str, Any] = {"normalize": "ct", "orientation": "RAS", "spacing": "median", "dim": 3}
    options |= {"classes": {"background": 0, "organ": 1}}
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, **quiet)
    trainer.fit(OneWeight(), module(mixed, **options))
    trainer.save_checkpoint(mixed / "last.ckpt")
    (mixed / "masks").rename(mixed / "gone")
    net = OneWeight()
    logits = pl.Trainer(**quiet).predict(
        net, module(mixed, **options), ckpt_path=mixed / "last.ckpt", weights_only=True
    )
    assert logits is not None
    assert [tuple(one.shape) for one in logits] == [(1, 2, 12, 10, 8)] * 4  # each on the grid of its file
    assert [tuple(image.shape[2:]) for image in net.seen][2] == (24, 20, 16)
