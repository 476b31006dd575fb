"""A stranger's module with dropout and a shuffling loader resumes to the same bits with our callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ics_apps.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint
from ics_apps.runs.seeding import SeedEveryEpoch, epoch_seed


class Stranger(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any, _index: int) -> Tensor:
        self.seen.append(batch[0][:, 0].tolist())
        loss: Tensor = self.net(batch[0]).pow(2).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def fit(folder: Path, epochs: int, workers: int, checkpoint: Path | None = None) -> Stranger:
    module = Stranger()
    data = TensorDataset(torch.arange(48.0).reshape(12, 4))
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=folder, plugins=[AtomicCheckpointIO()],
                      callbacks=[RunCheckpoint(), SeedEveryEpoch(3)])  # fmt: skip
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_the_batches_and_dropout_of_an_uninterrupted_one(tmp_path: Path, workers: int) -> None:
    whole = fit(tmp_path / "whole", 4, workers)
    fit(tmp_path / "parts", 2, workers)
    resumed = fit(tmp_path / "parts", 4, workers, tmp_path / "parts/checkpoints/last.ckpt")
    assert resumed.seen == whole.seen[6:], "the order of the samples differs"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), f"{name} differs"


def test_epochs_are_shuffled_differently(tmp_path: Path) -> None:
    seen = fit(tmp_path, 2, 0).seen
    assert seen[:3] != seen[3:]


def test_seeds_differ_between_epochs_ranks_and_seeds() -> None:
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(5) for epoch in range(50) for rank in range(4)}
    assert len(seeds) == 5 * 50 * 4
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_private_name_that_seeding_relies_on_is_there() -> None:
    import inspect

    assert "_data_fetcher" in inspect.getsource(_FitLoop)
