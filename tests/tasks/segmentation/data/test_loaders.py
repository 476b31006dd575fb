"""The loaders inside a Trainer: epochs, workers, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ics_apps.tasks.segmentation.data import PhantomData
from ics_apps.tasks.segmentation.data.loaders import report_fractions
from ics_apps.tasks.segmentation.data.patches import PatchSampler

# Lightning advises about workers and the length of the run, and uses a torch name that is on its way out.
quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*number of training batches", "ignore:.*LeafSpec:FutureWarning"
)


class OneWeight(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(1, 4, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["mask"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch["image"].double().sum().item()))


def small(**options: Any) -> PhantomData:
    options = {
        "size": 16,
        "num_cases": 3,
        "num_val": 1,
        "num_test": 1,
        "batch_size": 2,
        "patches_per_epoch": 4,
    } | options
    return PhantomData(**options)


def fit(saved: Path, epochs: int, checkpoint: Path | None = None) -> tuple[Recorder, OneWeight]:
    torch.manual_seed(0)
    recorder, module = Recorder(), OneWeight()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[recorder],
    )
    trainer.fit(module, small(), ckpt_path=checkpoint)
    trainer.save_checkpoint(saved)
    return recorder, module


@quiet
def test_resumed_run_sees_the_patches_of_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, whole = fit(tmp_path / "a", 3)
    first, _ = fit(tmp_path / "b", 1)
    rest, resumed = fit(tmp_path / "c", 3, tmp_path / "b")
    assert len({value for _, value in straight.seen}) == 6
    assert first.seen + rest.seen == straight.seen
    assert torch.equal(whole.net.weight, resumed.net.weight)


def epochs_of(data: PhantomData, number: int) -> list[Tensor]:
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, PatchSampler)
    images = []
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)
        images += [batch["image"] for batch in loader]
    return images


def test_workers_change_nothing() -> None:
    none, two = small(), small(num_workers=2)
    for data in (none, two):
        data.setup("fit")
    one_way, other_way = epochs_of(none, 2), epochs_of(two, 2)
    assert len(one_way) == 4
    assert all(torch.equal(a, b) for a, b in zip(one_way, other_way, strict=True))
    assert not torch.equal(one_way[0], one_way[2])


def test_loaders_leave_the_global_random_state_alone() -> None:
    data = small()
    data.setup("fit")
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_fractions_warn_about_the_first_foreground_above_one_half() -> None:
    fractions, warning = report_fractions(["a", "b", "c"], {0: 20, 1: 20, 2: 60})
    assert fractions == {"a": 0.2, "b": 0.2, "c": 0.6}
    assert warning is not None
    assert warning.startswith("class 'c' covers 60.0 %")
    assert report_fractions(["a", "b"], {0: 50, 1: 50})[1] is None
