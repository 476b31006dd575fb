"""What the landscape monitor writes, and that training does not notice it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks.landscape_monitor import LR_MULTIPLES, LandscapeMonitor
from ics_apps.callbacks.probe_callback import Measured
from ics_apps.probes.landscape import landscape
from ics_apps.probes.objective import Objective

BATCHES = [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Fit(LightningModule):
    """Batch norm and dropout, at a rate that may begin at 0."""

    def __init__(self, first_rate: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.first_rate = first_rate

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.first_rate if step == 0 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder: Path, module: LightningModule, *callbacks: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(BATCHES, batch_size=None))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "landscape.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_measurement_is_the_walk_along_the_gradient_of_the_batch_to_come(tmp_path):
    fit(tmp_path, Fit(dropout=0), LandscapeMonitor(every_n_steps=10, lr_multiples=[1.0, 2.0], dirpath=tmp_path))
    fresh = Fit(dropout=0)
    with Objective(fresh, lambda: fresh.training_step(BATCHES[0], 0)) as objective:
        found = landscape(objective, [0.1, 0.2])
    start, *points = rows_of(tmp_path)
    assert start == {
        "step": "0",
        "lr_multiple": "0.0",
        "step_size": "0.0",
        "loss": str(found.loss),
        "gradient_change": "0.0",
        "smoothness": "",
    }
    assert [(point["lr_multiple"], point["step_size"]) for point in points] == [("1.0", "0.1"), ("2.0", "0.2")]
    for column, expected in (
        ("loss", found.losses),
        ("gradient_change", found.gradient_changes),
        ("smoothness", found.smoothness),
    ):
        assert [float(point[column]) for point in points] == expected.tolist(), column


def test_training_does_not_notice(tmp_path):
    plain, probed = Fit(), Fit()
    fit(tmp_path, plain)
    fit(tmp_path, probed, LandscapeMonitor(every_n_steps=1, dirpath=tmp_path))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, probed.state_dict()[name]), name
    assert len({row["step"] for row in rows_of(tmp_path)}) == len(BATCHES)
    assert len(rows_of(tmp_path)) == len(BATCHES) * (1 + len(LR_MULTIPLES))


def test_a_warm_up_that_begins_at_zero_is_measured_from_the_second_time_on(tmp_path):
    fit(tmp_path, Fit(first_rate=0.0), LandscapeMonitor(every_n_steps=2, dirpath=tmp_path))
    assert {row["step"] for row in rows_of(tmp_path)} == {"2"}


class Root(Fit):
    """A loss that is not defined beyond a certain step."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.w.sqrt()  # g = 1/2, so w reaches 0 after 20 learning rates


def test_a_step_too_far_is_an_infinite_loss_that_no_logger_gets(tmp_path):
    logged: list[dict[str, float]] = []

    class Noting(LandscapeMonitor):
        def write(self, trainer: Trainer, step: int, measured: Measured) -> None:
            logged.append(dict(measured.scalars))
            super().write(trainer, step, measured)

    fit(tmp_path, Root(), Noting(every_n_steps=10, lr_multiples=[1.0, 30.0], dirpath=tmp_path))
    near, far = rows_of(tmp_path)[1:]
    assert float(near["loss"]) < 1
    assert (far["loss"], far["gradient_change"], far["smoothness"]) == ("inf", "", "")
    assert set(logged[0]) == {"landscape/gradient_range", "landscape/beta"}


@pytest.mark.parametrize("name", ["classifier", "checkpointed", "shared", "gan"])
def test_it_measures_a_strangers_module_in_mixed_precision(name, strangers, batches, make_trainer, tmp_path):
    module = strangers[name]()
    if name == "gan":
        type(module).probe_loss = lambda self, batch: self.d(self.g(torch.randn(len(batch), 8))).square().mean()
    try:
        make_trainer(LandscapeMonitor(dirpath=tmp_path), precision="bf16-mixed").fit(module, batches)
    finally:
        if name == "gan":
            del type(module).probe_loss
    assert len(rows_of(tmp_path)) == 1 + len(LR_MULTIPLES)


@pytest.mark.parametrize("multiples", [[], [0.0], [1.0, -1.0], [math.inf]])
def test_multiples_are_above_zero(multiples):
    with pytest.raises(ValueError, match="lr_multiples"):
        LandscapeMonitor(lr_multiples=multiples)
