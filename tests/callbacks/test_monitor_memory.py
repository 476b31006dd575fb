"""What the monitor holds in memory while it watches 64 layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.monitor_memory import held_bytes
from ics_apps.callbacks import ActivationMonitor

LAYERS = 64


class Deep(LightningModule):
    """Convolutions, norms and activations, 64 layers in all."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(LAYERS // 3)]
        self.net = nn.Sequential(*[layer for block in blocks for layer in block], nn.Conv2d(16, 1, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Scale(Callback):
    """Weighs the monitor between any two steps."""

    def __init__(self, monitor: ActivationMonitor) -> None:
        self.monitor = monitor
        self.most = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.most = max(self.most, sum(held_bytes(self.monitor, pl_module)))


def test_it_holds_at_most_one_megabyte_and_a_kilobyte_a_layer(make_trainer: Callable[..., Trainer]) -> None:
    monitor = ActivationMonitor(every_n_steps=1, on_alarm="log")
    scale = Scale(monitor)
    images = torch.randn(10, 16, 16, 8, 8)
    make_trainer(monitor, scale, max_epochs=1).fit(Deep(), DataLoader(images, batch_size=None))  # type: ignore[arg-type]
    assert 600_000 < scale.most <= 2**20 + LAYERS * 1024
