"""The ways people train: accumulation, manual optimization, mixed precision, checkpointing, averages, searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor
from tests.examples.kept import ALL, Kept, rms

Fit = Callable[..., pd.DataFrame]
Make = Callable[..., Trainer]
NAMES = ["net.0", "net.1", "net.2", "net.3"]


class Regressor(LightningModule):
    """A layer norm and a GELU between two linear layers."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self(batch) - batch.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


class Validated(Regressor):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch)


class Checkpointed(Regressor):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.net[:3], x.requires_grad_(), use_reentrant=self.use_reentrant)
        y: Tensor = self.net[3](hidden)
        return y


class Gan(LightningModule):
    """Manual optimization; the discriminator says what it is shown."""

    def __init__(self, monitor: ActivationMonitor) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.monitor = monitor
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        of_generator, of_discriminator = self.optimizers()  # type: ignore[attr-defined, misc]
        fake = self.generator(torch.randn(len(batch), 2))
        with self.monitor.tag("real"):
            real_loss = nn.functional.softplus(-self.discriminator(batch)).mean()
        with self.monitor.tag("fake"):
            fake_loss = nn.functional.softplus(self.discriminator(fake.detach())).mean()
        of_discriminator.zero_grad()
        self.manual_backward(real_loss + fake_loss)
        of_discriminator.step()
        with self.monitor.tag("fake"):
            loss = nn.functional.softplus(-self.discriminator(fake)).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), 1e-3) for net in (self.generator, self.discriminator)]


@pytest.fixture
def data() -> DataLoader[Tensor]:
    values = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(values, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _seed() -> None:
    seed_everything(0, verbose=False)


def of(rows: pd.DataFrame, layer: str, statistic: str) -> list[float]:
    values: list[float] = rows[rows["layer"] == layer][statistic].tolist()
    return values


def matches(rows: pd.DataFrame, layer: str, kept: Kept, rel: float = 1e-6) -> None:
    assert of(rows, layer, "rms") == pytest.approx([rms(x) for x in kept.outputs], rel=rel)
    assert of(rows, layer, "grad_rms") == pytest.approx([rms(x) for x in kept.gradients], rel=rel)


def test_a_gans_forwards_are_told_apart_by_their_tags(trainer_with: Make, table: Fit, data: Any) -> None:
    monitor = ActivationMonitor(every_n_steps=2, sample_size=ALL)
    model = Gan(monitor)
    kept = Kept(model.discriminator[2])
    trainer_with(monitor).fit(model, data)
    rows = table()
    last = rows[rows["layer"] == "discriminator.2"]
    # Each batch is two optimizer steps.
    assert last["step"].unique().tolist() == [0, 2, 4, 6, 8, 10]
    for place, (tag, call) in enumerate([("real", 0), ("fake", 0), ("fake", 1)]):
        of_call = last[(last["tag"] == tag) & (last["call"] == call)]
        logits = kept.outputs[place::3]
        assert of_call["rms"].tolist() == pytest.approx([rms(x) for x in logits], rel=1e-6)
        # d softplus(+-z) / dz = +-sigmoid(+-z), over the mean of 8.
        sign = 1 if place == 1 else -1
        expected = [rms(torch.sigmoid(sign * x) / 8) for x in logits]
        assert of_call["grad_rms"].tolist() == pytest.approx(expected, rel=1e-5)
    assert set(rows[rows["layer"].str.startswith("generator")]["tag"]) == {""}


def test_accumulated_steps_show_the_first_micro_batch_and_the_update_of_all(fit: Fit, data: Any) -> None:
    model = Regressor()
    kept = Kept(model.net[3])
    weights = [model.net[3].weight.detach().clone()]

    class Watches(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            weights.append(model.net[3].weight.detach().clone())

    rows = fit(model, data, Watches(), accumulate_grad_batches=3)
    assert rows["step"].unique().tolist() == [0, 1]
    assert of(rows, "net.3", "rms") == pytest.approx([rms(x) for x in kept.outputs[::3]], rel=1e-6)
    # The loss of each micro-batch is a third of its mean.
    assert of(rows, "net.3", "grad_rms") == pytest.approx([rms(x) for x in kept.gradients[::3]], rel=1e-6)
    norms = [float(w.norm()) for w in (weights[0], weights[3])]
    moves = [float((b - a).norm()) for a, b in ((weights[0], weights[3]), (weights[3], weights[6]))]
    assert of(rows, "net.3", "weight_norm") == pytest.approx(norms, rel=1e-6)
    ratios = [move / norm for move, norm in zip(moves, norms, strict=True)]
    assert of(rows, "net.3", "update_ratio") == pytest.approx(ratios, rel=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_are_read_once_with_their_gradients(use_reentrant: bool, data: Any, fit: Fit) -> None:
    seed_everything(0, verbose=False)
    plain = fit(Regressor(), data)
    seed_everything(0, verbose=False)
    rows = fit(Checkpointed(use_reentrant), data)
    assert rows["layer"].tolist() == NAMES * 6
    for statistic in ("rms", "grad_rms", "update_ratio", "drift_w1"):
        assert rows[statistic].tolist() == pytest.approx(plain[statistic].tolist(), rel=1e-5, nan_ok=True)


def test_bfloat16_is_read_as_it_is(fit: Fit, data: Any) -> None:
    model = Regressor()
    kept = Kept(model.net[0])
    rows = fit(model, data, precision="bf16-mixed")
    assert of(rows, "net.0", "dtype") == ["bfloat16"] * 6
    matches(rows, "net.0", kept)


def test_gradients_under_a_scaler_are_those_of_the_loss_itself(fit: Fit, data: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    model = Regressor()
    kept = Kept(model.net[0])
    rows = fit(model, data, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 1024 * 8
    assert of(rows, "net.0", "dtype") == ["float16"] * 6
    assert of(rows, "net.0", "rms") == pytest.approx([rms(x) for x in kept.outputs], rel=1e-6)
    scales = [1024, 1024, 2048, 2048, 4096, 4096]
    unscaled = [rms(x) / scale for x, scale in zip(kept.gradients, scales, strict=True)]
    assert of(rows, "net.0", "grad_rms") == pytest.approx(unscaled, rel=1e-6)


def test_a_step_that_the_scaler_skips_has_no_gradient_and_no_update(fit: Fit, data: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    rows = fit(Regressor(), data, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    first = rows[rows["layer"] == "net.0"].iloc[0]
    assert np.isnan(first["grad_rms"])
    assert first["update_ratio"] == 0
    assert first["nonfinite_count"] == 0


def test_the_weights_in_training_are_read_not_their_moving_average(trainer_with: Make, table: Fit, data: Any) -> None:
    model = Validated()
    kept = Kept(model.net[3])
    monitor = ActivationMonitor(1, sample_size=ALL)
    trainer_with(monitor, EMAWeightAveraging(decay=0.5), max_epochs=2).fit(model, data, data)
    rows = table()
    assert rows["step"].unique().tolist() == list(range(12))
    matches(rows, "net.3", kept)


def test_the_pass_in_which_averaged_weights_get_batch_statistics_is_one_step_more(fit: Fit, data: Any) -> None:
    model = Regressor()
    model.net[1] = nn.BatchNorm1d(16)
    kept = Kept(model.net[3])
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    rows = fit(model, data, averaging, max_epochs=3)
    # Three epochs of six steps, then six batches that Lightning takes for one accumulated step, without gradients.
    assert len(kept.outputs) == 24
    assert of(rows, "net.3", "step") == list(range(19))
    assert of(rows, "net.3", "rms") == pytest.approx([rms(x) for x in kept.outputs[:19]], rel=1e-6)
    assert np.isnan(of(rows, "net.3", "grad_rms")[18])


def test_anomaly_detection(fit: Fit, data: Any) -> None:
    model = Regressor()
    kept = Kept(model.net[1])
    matches(fit(model, data, detect_anomaly=True), "net.1", kept)


@pytest.mark.parametrize("first", [True, False])
def test_a_search_for_the_learning_rate_leaves_no_rows(first: bool, trainer_with: Make, table: Fit, data: Any) -> None:
    monitor, finder = ActivationMonitor(1, sample_size=ALL), LearningRateFinder(num_training_steps=5)
    model = Regressor()
    kept = Kept(model.net[3])
    trainer_with(*([monitor, finder] if first else [finder, monitor])).fit(model, data)
    rows = table()
    assert of(rows, "net.3", "step") == list(range(6))
    assert of(rows, "net.3", "rms") == pytest.approx([rms(x) for x in kept.outputs[-6:]], rel=1e-6)
    assert np.isnan(of(rows, "net.3", "drift_w1")[0])


def test_overfitting_one_batch_shows_only_what_the_weights_change(fit: Fit, data: Any) -> None:
    still = fit(Regressor(lr=0.0), data, overfit_batches=1, max_epochs=3)
    assert of(still, "net.3", "drift_w1")[1:] == [0, 0]
    moving = fit(Regressor(lr=0.1), data, overfit_batches=1, max_epochs=3)
    assert min(of(moving, "net.3", "drift_w1")[1:]) > 0


def test_a_fit_that_goes_on_adds_to_the_table_and_a_new_one_begins_it_anew(trainer_with: Make, table: Fit,
                                                                          data: Any) -> None:  # fmt: skip
    model, monitor = Regressor(), ActivationMonitor(1, sample_size=ALL)
    kept = Kept(model.net[3])
    trainer = trainer_with(monitor)
    trainer.fit(model, data)
    assert of(table(), "net.3", "step") == list(range(6))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data)
    rows = table()
    assert of(rows, "net.3", "step") == list(range(12))
    assert of(rows, "net.3", "epoch") == [0] * 6 + [1] * 6
    assert np.isnan(of(rows, "net.3", "drift_w1")).tolist() == [True] + [False] * 11
    matches(rows, "net.3", kept)
    trainer_with(monitor).fit(model, data)
    again = table()
    assert of(again, "net.3", "rms") == pytest.approx([rms(x) for x in kept.outputs[12:]], rel=1e-6)


def test_validation_before_training_leaves_no_rows(trainer_with: Make, table: Fit, data: Any) -> None:
    model, monitor = Validated(), ActivationMonitor(1, sample_size=ALL)
    kept = Kept(model.net[3])
    trainer = trainer_with(monitor)
    trainer.validate(model, data, verbose=False)
    trainer.fit(model, data, data)
    rows = table()
    assert rows["layer"].tolist() == NAMES * 6
    matches(rows, "net.3", kept)
