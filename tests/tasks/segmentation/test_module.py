"""The task as people use it: own folders of PNG and NIfTI files, by the command line and from Python."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from ics_apps.cli import main
from ics_apps.nets import UNet
from ics_apps.norms import NormError
from ics_apps.runs.checkpoints import read_checkpoint
from ics_apps.tasks.base import TaskError
from ics_apps.tasks.segmentation import SegmentationTask
from ics_apps.tasks.segmentation.data import PhantomData

SMALL = [
    "--model.net.width", "2", "--model.net.depth", "1", "--data.patch_size", "16", "--data.patches_per_epoch", "16",
    "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def png_folder(tmp_path: Path) -> Path:
    """Six pictures of bright squares with masks of values 0 and 7, of different sizes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "png"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((20 + number, 24), np.uint8)
        mask[5:15, 6 : 14 + number] = 7
        image = (rng.normal(60, 10, mask.shape) + 100 * (mask > 0)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"case {number}.png")
        Image.fromarray(mask).save(root / "masks" / f"case {number}.png")
    return root


def test_own_pngs_are_trained_tested_and_predicted(
    png_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.root", str(png_folder), "--data.classes", '{"outside": 0, "square": 7}']
    assert main(["run", "segmentation/isbi2012", "--out", "run", *data, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "test/dice/square" in out
    assert "report: run/report.html" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert {"test/dice", "test/iou", "test/hd95", "test/dice/square"} <= set(metrics)
    assert 0 <= metrics["test/dice"] <= 1
    assert json.loads(Path("run/run.json").read_text())["notes"] == [
        "seeded draw (seed 0, val_fraction 0.2, test_fraction 0): 5 train, 1 val, 0 test cases; "
        "no test part, so test uses val"
    ]
    table = pd.read_csv("run/metrics.csv")
    assert table["val/dice"].notna().sum() == 2
    for name in ("config.yaml", "run.json", "report.html", "panels/index.json", "checkpoints/best.ckpt"):
        assert (tmp_path / "run" / name).is_file(), name

    assert main(["test", "run"]) == 0
    assert f"{metrics['test/dice']:.4f}" in capsys.readouterr().out, "`test` and `run` disagree about the same weights"

    assert main(["predict", "run", "--data.predict_root", str(png_folder / "images")]) == 0
    assert "predictions: run/predictions" in capsys.readouterr().out
    written = sorted(Path("run/predictions").iterdir())
    assert [path.name for path in written] == [f"case {number}.png" for number in range(6)]
    for path in written:
        mask = np.asarray(Image.open(path))
        assert set(np.unique(mask)) <= {0, 7}
        assert mask.shape == np.asarray(Image.open(png_folder / "images" / path.name)).shape


def test_nifti_volumes_are_trained_and_predicted_on_their_own_grid(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([-0.5, 0.5, 2.0, 1.0])
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "nii" / folder).mkdir(parents=True)
    for number in range(3):
        mask = np.zeros((18, 17, 6), np.uint8)
        mask[5:12, 5:12, 1:5] = 1
        image = rng.normal(0, 1, mask.shape).astype(np.float32) + 3 * mask
        nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "nii/images" / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "nii/masks" / f"{number}.nii.gz")
    data = ["--data.root", "nii", "--data.classes", "null", "--data.patch_size", "[16, 16, 4]"]
    small = [
        "--model.net.width", "2", "--model.net.depth", "1", "--data.patches_per_epoch", "8",
        "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert main(["run", "segmentation/isbi2012", "--out", "run", *data, *small]) == 0
    assert main(["predict", "run"]) == 0
    written = nibabel.load("run/predictions/0.nii.gz")
    assert np.array_equal(written.affine, affine)
    assert written.shape == (18, 17, 6)


def test_a_checkpoint_holds_plain_values_and_is_enough_to_use_the_net(tmp_path: Path) -> None:
    tiny = str(Path(__file__).parents[2] / "runs" / "tiny.yaml")
    assert main(["fit", tiny, "--out", "run", "--trainer.max_epochs", "1", "--model.norm", "group",
                 "--model.norm.num_groups", "2"]) == 0  # fmt: skip
    path = Path("run/checkpoints/best.ckpt")
    assert read_checkpoint(path)["hyper_parameters"]["norm"] == {"name": "group", "num_groups": 2}
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    assert task(torch.zeros(1, 1, 16, 16)).shape == (1, 4, 16, 16)
    weights = read_checkpoint(path)["state_dict"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in task.state_dict().items())


def test_a_new_run_starts_from_the_weights_of_another_with_more_classes(
    tmp_path: Path, png_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = str(Path(__file__).parents[2] / "runs" / "tiny.yaml")
    assert main(["fit", tiny, "--out", "first", "--trainer.max_epochs", "1"]) == 0
    data = ["--data.root", str(png_folder), "--data.classes", '{"outside": 0, "square": 7}']
    arguments = [
        "--out",
        "second",
        *data,
        *SMALL,
        "--model.net.fold",
        "1",
        "--init_from",
        "first/checkpoints/best.ckpt",
    ]
    assert main(["fit", "segmentation/isbi2012", *arguments]) == 0
    out = capsys.readouterr().out
    assert "started from first/checkpoints/best.ckpt" in out
    assert "kept as initialised: net.head.bias, net.head.weight" in out


def test_evaluating_with_other_classes_is_refused(
    tmp_path: Path, png_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = str(Path(__file__).parents[2] / "runs" / "tiny.yaml")
    assert main(["fit", tiny, "--out", "run", "--trainer.max_epochs", "1"]) == 0
    data = ["--data", "ics_apps.tasks.segmentation.data.ImageMaskFolderData", "--data.root", str(png_folder)]
    assert main(["test", "run", *data]) == 2
    assert "the checkpoint and the data differ in class_names" in capsys.readouterr().err


def test_the_task_trains_from_python_without_the_command_line(tmp_path: Path) -> None:
    task = SegmentationTask(norm="instance", net=partial(UNet, width=2, depth=1))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    data = PhantomData(size=16, num_cases=4, num_val=1, num_test=1, batch_size=4, patches_per_epoch=8)
    trainer.fit(task, datamodule=data)
    assert 0 <= float(trainer.callback_metrics["val/dice"]) <= 1
    trainer.save_checkpoint("mine.ckpt")
    assert "net" not in read_checkpoint(Path("mine.ckpt"))["hyper_parameters"]


def test_an_unknown_norm_is_refused_before_any_data_is_read() -> None:
    with pytest.raises(NormError, match="did you mean 'instance'"):
        SegmentationTask(norm="instnace")


def test_without_data_and_checkpoint_the_task_says_what_it_lacks() -> None:
    with pytest.raises(TaskError, match="does not know its classes"):
        SegmentationTask()(torch.zeros(1, 1, 8, 8))
