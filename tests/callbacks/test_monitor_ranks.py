"""Two processes under DDP: the monitor's table is that of one process with the joint batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor
from tests.norms.two_ranks import ROOT

# What depends on the loss or on each rank's own batch statistics is not that of one process.
OF_EACH_RANK = ("grad_rms", "grad_zero_fraction")
SPLIT = 5  # of 8: rank 0 has more than rank 1


class Parted(LightningModule):
    """A net without batch statistics, and batches of which each rank takes its uneven part."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.SiLU(),
            nn.Linear(8, 1),
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.trainer.world_size == 2:
            batch = batch[:SPLIT] if self.trainer.global_rank == 0 else batch[SPLIT:]
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder: Path, devices: int) -> None:
    seed_everything(0, verbose=False)
    images = torch.randn(6, 8, 1, 6, 6) * torch.arange(1.0, 7.0).reshape(6, 1, 1, 1, 1) + 3
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[ActivationMonitor(every_n_steps=2, sample_size=4096, dirpath=folder / "monitor")],
        default_root_dir=folder,
    )
    trainer.fit(Parted(), DataLoader(images, batch_size=None))  # type: ignore[arg-type]


def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "monitor").sort_values(["step", "order", "call"], ignore_index=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of two processes, and what they were seen to do."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return table(folder), json.loads((folder / "seen.json").read_text())


def test_the_table_of_two_ranks_with_uneven_batches_is_that_of_one_process(two: Any, tmp_path: Path) -> None:
    fit(tmp_path, devices=1)
    joint, one = two[0], table(tmp_path)
    assert len(joint) == len(one) == 3 * 6
    for name in one.columns.drop([*OF_EACH_RANK, "histogram"]):
        if pd.api.types.is_float_dtype(one[name]):
            assert joint[name].tolist() == pytest.approx(one[name].tolist(), rel=1e-6, abs=1e-6, nan_ok=True), name
        else:
            assert joint[name].tolist() == one[name].tolist(), name
    histograms = zip(joint["histogram"], one["histogram"], strict=True)
    # A value on an edge may fall to either side: the ranks' kernels round its last digit differently.
    assert all(abs(a.astype(int) - b.astype(int)).sum() <= 2 for a, b in histograms)
    assert joint["grad_rms"].notna().all()


def test_each_sample_costs_one_collective_operation(two: Any) -> None:
    assert two[1]["all_gather"] == 3


def test_only_rank_zero_writes(two: Any) -> None:
    assert two[1]["files"] == ["_alarms.csv", "part-000000000.parquet"]


if __name__ == "__main__":
    target, calls, gather = Path(sys.argv[1]), [0], distributed.all_gather

    def counted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        return gather(*args, **options)

    distributed.all_gather = counted
    fit(target, devices=2)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        files = sorted(path.name for path in (target / "monitor").iterdir())
        (target / "seen.json").write_text(json.dumps({"all_gather": calls[0], "files": files}))
