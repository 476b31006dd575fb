"""Small nets, learnable made-up data, and a Trainer with the monitor: what the tests of the alarms train."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor
from ics_apps.nets import UNet
from ics_apps.norms import make_norm

CLASSES = 4
SIDE = 16
BATCH = 32

Batch = tuple[Tensor, Tensor]


# Data. ---------------------------------------------------------------------------------------------------------------


def gratings(count: int) -> Batch:
    """Noisy waves in [-1.6, 1.6] of one of four directions and any phase, `(count, 1, 16, 16)`, and the direction."""
    label = torch.randint(CLASSES, (count,))
    angle, phase = label * math.pi / CLASSES, torch.rand(count) * 2 * math.pi
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = x * torch.cos(angle)[:, None, None] + y * torch.sin(angle)[:, None, None]
    return torch.sin(1.2 * along + phase[:, None, None])[:, None] + 0.2 * torch.randn(count, 1, SIDE, SIDE), label


def discs(count: int) -> Batch:
    """Noisy bright discs and where they are."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centre, radius = torch.randint(4, 12, (2, count, 1, 1)), torch.randint(2, 5, (count, 1, 1))
    mask = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2).long()
    return mask[:, None] + 0.4 * torch.randn(count, 1, SIDE, SIDE), mask


def points(count: int) -> Batch:
    """Features of unit size and their class, the quadrant of the first two."""
    x = torch.randn(count, 16)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def prices(count: int) -> Batch:
    """Features of unit size and a target of about 250 that nobody has normalised."""
    x = torch.randn(count, 16)
    return x, 250 + 50 * x[:, :1] + 20 * x[:, 1:2] * x[:, 2:3]


def sequences(count: int) -> Batch:
    """Sequences of 12 steps and whether their first feature adds up to more than 0."""
    x = torch.randn(count, 12, 4)
    return x, (x[..., 0].sum(1) > 0).long()


# Nets. ---------------------------------------------------------------------------------------------------------------


def conv(inside: int, outside: int, norm: str, act: type[nn.Module] = nn.ReLU, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and activation."""
    layers = [nn.Conv2d(inside, outside, 3, stride, 1, bias=norm == "none"), make_norm(norm, outside), act()]
    return nn.Sequential(*layers)


def dense(inside: int, outside: int, norm: str, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layer, norm and activation."""
    return nn.Sequential(nn.Linear(inside, outside), make_norm(norm, outside, dim=0), act())


def pooled(channels: int, outputs: int = CLASSES) -> list[nn.Module]:
    """A classifier's end."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)]


class Block(nn.Module):
    """A residual block whose branch begins at 0."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.first = conv(channels, channels, norm)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        self.norm = make_norm(norm, channels)
        self.act = nn.ReLU()
        nn.init.zeros_(next(iter(self.norm.parameters()), self.second.weight))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.norm(self.second(self.first(x))))
        return y


class Recurrent(nn.Module):
    """An LSTM that answers after the last time step."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 24, batch_first=True)
        self.norm = make_norm(norm, 24, dim=0)
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.lstm(x)[0][:, -1]))
        return y


def cnn(norm: str) -> nn.Module:
    return nn.Sequential(conv(1, 16, norm), conv(16, 24, norm, stride=2), conv(24, 24, norm, stride=2), *pooled(24))


def gelu_cnn(norm: str) -> nn.Module:
    return nn.Sequential(conv(1, 16, norm, nn.GELU), conv(16, 24, norm, nn.SiLU, 2), *pooled(24))


def resnet(norm: str) -> nn.Module:
    return nn.Sequential(conv(1, 16, norm, stride=2), *(Block(16, norm) for _ in range(3)), *pooled(16))


def mlp(norm: str) -> nn.Module:
    return nn.Sequential(dense(16, 48, norm), dense(48, 48, norm), nn.Linear(48, CLASSES))


def tanh_mlp(norm: str) -> nn.Module:
    return nn.Sequential(dense(16, 48, norm, nn.Tanh), dense(48, 48, norm, nn.Tanh), nn.Linear(48, CLASSES))


def regressor(norm: str) -> nn.Module:
    return nn.Sequential(dense(16, 48, norm), dense(48, 48, norm), nn.Linear(48, 1))


def unet(norm: str) -> nn.Module:
    return UNet(1, 2, norm=norm, width=8, depth=2)


def unet_streams(norm: str) -> nn.Module:
    return UNet(1, 2, norm=norm, width=8, depth=2, normalize_streams="both", activation="gelu")


def vit(norm: str) -> nn.Module:
    import timm

    norms = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    size = {"img_size": SIDE, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, norm_layer=norms[norm], **size)


# Tasks. --------------------------------------------------------------------------------------------------------------


class Supervised(LightningModule):
    """A net, a loss and an optimizer; `trace` is what should fall."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], optimizer: str, lr: float, steps: int) -> None:
        super().__init__()
        self.net, self.loss, self.how = net, loss, (optimizer, lr, steps)
        self.trace: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self.net(batch[0]), batch[1])
        self.trace.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        name, lr, steps = self.how
        if name == "sgd":
            return torch.optim.SGD(self.parameters(), lr, momentum=0.9, weight_decay=5e-4)
        if name == "adam":
            return torch.optim.Adam(self.parameters(), lr)
        optimizer = torch.optim.AdamW(self.parameters(), lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Vae(Supervised):
    """Reconstruction and KL of images."""

    def __init__(self, norm: str, lr: float) -> None:
        super().__init__(nn.Identity(), F.mse_loss, "adam", lr, 0)
        self.encoder = nn.Sequential(conv(1, 8, norm, stride=2), conv(8, 16, norm, stride=2), nn.Flatten())
        self.mean, self.log_var = nn.Linear(256, 8), nn.Linear(256, 8)
        up = nn.Upsample(scale_factor=2)
        self.decoder = nn.Sequential(
            dense(8, 256, norm), nn.Unflatten(1, (16, 4, 4)), up, conv(16, 16, norm), up, conv(16, 8, norm)
        )
        self.head = nn.Conv2d(8, 1, 3, padding=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        h = self.encoder(batch[0])
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.randn_like(mean) * torch.exp(log_var / 2)
        kl = (mean.square() + log_var.exp() - log_var - 1).sum(1).mean() / 2
        loss = F.mse_loss(self.head(self.decoder(z)), batch[0]) + kl / SIDE**2
        self.trace.append(loss.item())
        return loss


class Gan(LightningModule):
    """DCGAN on 2 x 8-pixel waves; `trace` is the distance of the fakes from the images along 32 directions."""

    def __init__(self, norm: str, tagged: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        act = lambda: nn.LeakyReLU(0.2)  # noqa: E731
        self.g = nn.Sequential(
            dense(16, 256, norm), nn.Unflatten(1, (16, 4, 4)), nn.Upsample(scale_factor=2), conv(16, 16, norm),
            nn.Upsample(scale_factor=2), nn.Conv2d(16, 1, 3, padding=1), nn.Tanh(),
        )  # fmt: skip
        self.d = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), act(), nn.Conv2d(16, 16, 4, 2, 1), make_norm(norm, 16), act(), nn.Flatten(),
            nn.Linear(256, 1),
        )  # fmt: skip
        self.monitor: ActivationMonitor | None = None
        self.tagged = tagged
        self.directions = torch.randn(SIDE**2, 32) / SIDE
        self.trace: list[float] = []

    def judged(self, tag: str, images: Tensor) -> Tensor:
        with self.monitor.tag(tag) if self.monitor and self.tagged else nullcontext():
            logits: Tensor = self.d(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        real = (batch[0] / 2).clamp(-1, 1)
        opt_g, opt_d = self.optimizers()  # type: ignore[attr-defined, misc]
        fake = self.g(torch.randn(len(real), 16))
        loss_d = F.softplus(self.judged("fake", fake.detach())).mean() + F.softplus(-self.judged("real", real)).mean()
        opt_d.zero_grad()
        self.manual_backward(loss_d)
        opt_d.step()
        loss_g = F.softplus(-self.judged("judge", fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()
        sides = [(images.flatten(1) @ self.directions).sort(0).values for images in (fake.detach(), real)]
        self.trace.append((sides[0] - sides[1]).abs().mean().item())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (self.g, self.d)]


# Runs. ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    alarms: pd.DataFrame
    trace: list[float]
    steps: int

    def of(self, rule: str) -> pd.DataFrame:
        return self.alarms[self.alarms["rule"] == rule]

    @property
    def learned(self) -> float:
        """What is left of the first loss."""
        return sum(self.trace[-10:]) / sum(self.trace[:10])

    @property
    def leapt(self) -> float:
        """The largest loss, in units of the largest of the first ten."""
        return max(self.trace) / max(self.trace[:10])


def train(
    module: LightningModule,
    data: Any,
    steps: int,
    folder: Path,
    *,
    every: int = 4,
    on_alarm: Any = "log",
    **options: Any,
) -> Outcome:
    """Train for `steps` optimizer steps with the monitor, on a list of batches or a function that draws one."""
    batches = [data(BATCH) for _ in range(min(steps, 100))] if callable(data) else data
    monitor = ActivationMonitor(every_n_steps=every, on_alarm=on_alarm, log_scalars=(), dirpath=folder, **options)
    if isinstance(module, Gan):
        module.monitor = monitor
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=2 * steps if isinstance(module, Gan) else steps,  # Lightning counts both optimizers' steps
        callbacks=[monitor],
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None, shuffle=len(batches) < steps))  # type: ignore[arg-type]
    trace = getattr(module, "trace", [])
    return Outcome(pd.read_csv(folder / "_alarms.csv"), trace, trainer.global_step)
