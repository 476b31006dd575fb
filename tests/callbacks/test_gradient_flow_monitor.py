"""GradientFlowMonitor on a Trainer: training unchanged, the window, several optimizers, precision."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks.gradient_flow_monitor import GradientFlowMonitor
from ics_apps.probes.gradient_flow import signal_to_noise

MakeTrainer = Callable[..., Trainer]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "gradient_flow.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(
    module_type: type[LightningModule], make_trainer: MakeTrainer, batches: Any, *callbacks: Any, **options: Any
) -> tuple[LightningModule, Trainer]:
    torch.manual_seed(0)
    module, trainer = module_type(), make_trainer(*callbacks, **options)
    trainer.fit(module, batches)
    return module, trainer


@pytest.mark.parametrize("name", ["classifier", "checkpointed", "gan"])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}])
def test_training_is_the_same_to_the_bit(
    name: str,
    options: dict[str, Any],
    strangers: dict[str, type[LightningModule]],
    make_trainer: MakeTrainer,
    batches: DataLoader[Tensor],
    tmp_path: Path,
) -> None:
    states = []
    for callbacks in ([], [GradientFlowMonitor(every_n_steps=6, window=3, dirpath=tmp_path)]):
        module, trainer = fit(strangers[name], make_trainer, batches, *callbacks, **options)
        moments = [s for o in trainer.optimizers for e in o.state.values() for s in e.values()]
        states.append([*module.state_dict().values(), *moments, torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert rows_of(tmp_path)


class Recorded(LightningModule):
    """It notes its gradients before each step, and clips them after that."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(36, 3), nn.Tanh(), nn.Linear(3, 1))
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch.flatten(1)).square().mean()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen.append(torch.cat([p.grad.flatten() for p in self.net[2].parameters()]))  # type: ignore[union-attr, index]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_window_holds_the_gradients_of_successive_steps_before_they_are_clipped(
    accumulate: int, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = GradientFlowMonitor(every_n_steps=5, window=3, dirpath=tmp_path)
    module, trainer = fit(
        Recorded, make_trainer, batches, monitor, accumulate_grad_batches=accumulate, gradient_clip_val=1e-3
    )
    assert isinstance(module, Recorded)
    rows = [row for row in rows_of(tmp_path) if row["layer"] == "net.2"]
    starts = list(range(0, trainer.global_step - 2, 5))
    assert [(row["step"], row["order"]) for row in rows] == [(str(start), "1") for start in starts]
    for row, start in zip(rows, starts, strict=True):
        window = module.seen[start : start + 3]
        norm = math.sqrt(sum(float(g.square().sum()) for g in window) / 3)
        assert float(row["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(row["snr"]) == pytest.approx(signal_to_noise(window), rel=1e-4)


def test_each_optimizer_of_a_gan_counts_its_own_steps(
    strangers: dict[str, type[LightningModule]], make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    fit(strangers["gan"], make_trainer, batches, GradientFlowMonitor(every_n_steps=8, window=4, dirpath=tmp_path))
    rows = rows_of(tmp_path)
    # Two steps a batch: a window of four batches ends when the next one is due.
    assert [row["step"] for row in rows if row["layer"] == "d.0"] == ["0", "8", "16", "24", "32", "40"]
    assert [row["layer"] for row in rows if row["step"] == "0"] == ["g.0", "g.1", "d.0", "d.3"]
    assert all(float(row["grad_norm"]) > 0 and row["snr"] for row in rows)


class Scaler:
    def get_scale(self) -> float:
        return 1024.0


def test_gradients_that_the_optimizer_will_unscale_are_unscaled(
    make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    module, trainer = Recorded(), make_trainer()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    norms = []
    for scaled in (False, True):
        monitor = GradientFlowMonitor(dirpath=tmp_path)
        trainer.precision_plugin.scaler = Scaler()  # type: ignore[attr-defined]
        optimizer._step_supports_amp_scaling = scaled  # type: ignore[attr-defined]
        monitor.on_train_start(trainer, module)
        monitor.on_train_batch_start(trainer, module, None, 0)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter) * (1024 if scaled else 1)
        monitor.on_before_optimizer_step(trainer, module, optimizer)
        assert monitor._window is not None
        norms.append([row["grad_norm"] for row in monitor._window.measured().rows["gradient_flow"]])
    assert norms[0] == norms[1]


@pytest.mark.parametrize("saved", ["in training", "after it"])
def test_a_window_that_was_open_when_the_run_was_saved_is_begun_again(
    saved: str, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = GradientFlowMonitor(every_n_steps=10, window=4, dirpath=tmp_path)

    class Saving(Recorded):
        def on_train_epoch_end(self) -> None:
            if saved == "in training":
                self.trainer.save_checkpoint(tmp_path / "open.ckpt")

    _, trainer = fit(Saving, make_trainer, batches, monitor, max_epochs=1)
    if saved == "after it":
        trainer.save_checkpoint(tmp_path / "open.ckpt")
    again = GradientFlowMonitor(every_n_steps=10, window=4, dirpath=tmp_path)
    make_trainer(again).fit(Recorded(), batches, ckpt_path=tmp_path / "open.ckpt")
    # One epoch has 12 steps.
    assert [row["step"] for row in rows_of(tmp_path) if row["layer"] == "net.0"] == ["0", "12", "20"]


def test_the_median_ratio_and_the_spread_of_norms_go_to_the_loggers(
    make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    fit(Recorded, make_trainer, batches, GradientFlowMonitor(), logger=logger)
    assert logger.log_dir is not None
    rows = rows_of(Path(logger.log_dir) / "probes")
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        [logged] = list(csv.DictReader(file))
    norms = sorted(float(row["grad_norm"]) for row in rows)
    assert float(logged["gradient_flow/smallest_to_largest_norm"]) == pytest.approx(norms[0] / norms[-1], rel=1e-5)
    ratios = [float(row["snr"]) for row in rows]
    assert float(logged["gradient_flow/median_snr"]) == pytest.approx(sum(ratios) / 2, rel=1e-5)


def test_arguments_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="window is 1"):
        GradientFlowMonitor(window=1)
    with pytest.raises(ValueError, match="every_n_steps is 4; give at least the window, 8"):
        GradientFlowMonitor(every_n_steps=4)
