"""A stranger's modules, and a Trainer that is quiet and writes nothing of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader


class Classifier(LightningModule):
    """Convolution, batch norm, in-place ReLU, dropout: state in weights, buffers and the random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Validated(Classifier):
    """It also runs in evaluation mode, between training steps."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch)


class Checkpointed(Classifier):
    """Its body is recomputed in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(checkpoint(self.body, x, use_reentrant=False))
        return y


class Shared(Classifier):
    """One activation in two places, outputs in a dict and a tuple."""

    class Wrapped(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.act = act
            self.rnn = nn.GRU(6, 6, batch_first=True)

        def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
            y, state = self.rnn(self.act(2 * x).mean(1))
            return {"pair": (y, state), "y": y}

    def __init__(self) -> None:
        super().__init__()
        act = nn.LeakyReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), act)
        self.wrapped = self.Wrapped(act)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        out = self.wrapped(self.body(batch))
        return out["y"].square().mean() + out["pair"][1].mean()


class Adversarial(LightningModule):
    """A GAN: manual optimization, two optimizers, several forwards of each network in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Sequential(nn.Linear(8, 36), nn.BatchNorm1d(36), nn.Tanh())
        self.d = nn.Sequential(nn.Linear(36, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined, misc]
        real = batch.flatten(1)
        fake = self.g(torch.randn(len(real), 8))
        loss_d = nn.functional.softplus(self.d(fake.detach())).mean() + nn.functional.softplus(-self.d(real)).mean()
        opt_d.zero_grad()
        self.manual_backward(loss_d)
        opt_d.step()
        loss_g = nn.functional.softplus(-self.d(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (self.g, self.d)]


@pytest.fixture
def batches() -> DataLoader[Tensor]:
    images = torch.randn(12, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(images, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: Any, **options: Any) -> Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **{**quiet, **options})

    return make


@pytest.fixture
def strangers() -> dict[str, type[LightningModule]]:
    return {
        "classifier": Classifier,
        "validated": Validated,
        "checkpointed": Checkpointed,
        "shared": Shared,
        "gan": Adversarial,
    }
