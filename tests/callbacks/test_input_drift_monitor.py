"""InputDriftMonitor on a Trainer: its reference batch, the file, resuming, training unchanged."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ics_apps.callbacks.input_drift_monitor import InputDriftMonitor

MakeTrainer = Callable[..., Trainer]
DISTANCES = ("drift_kl", "drift_w1", "drift_mean", "reference_kl", "reference_w1", "reference_mean")
COLUMNS = ["step", "layer", "order", "mean", "std", "q15", "q50", "q85", *DISTANCES]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "input_drift.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(module: LightningModule, make_trainer: MakeTrainer, batches: Any, *callbacks: Any, **options: Any) -> Trainer:
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(module, batches)
    return trainer


def classifier(strangers: dict[str, type[LightningModule]], lr: float = 1e-2) -> LightningModule:
    class WithRate(strangers["classifier"]):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            batch.mul_(0.5)  # some write into their batch
            loss: Tensor = super().training_step(batch, batch_idx)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=lr)

    torch.manual_seed(0)
    return WithRate()


Strangers = dict[str, type[LightningModule]]


def test_a_net_that_does_not_learn_has_no_drift_whatever_it_is_trained_on(
    strangers: Strangers, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = InputDriftMonitor(every_n_steps=5, dirpath=tmp_path)
    fit(classifier(strangers, lr=0.0), make_trainer, batches, monitor)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == COLUMNS
    assert [(row["step"], row["layer"]) for row in rows[:6]] == [
        (step, layer) for step in ("0", "5") for layer in ("body.0", "body.2", "head.1")
    ]
    for row in rows:
        assert [row[name] for name in DISTANCES] == ([""] * 6 if row["step"] == "0" else ["0.0"] * 6)


def test_a_net_that_learns_drifts_above_its_first_layer(
    strangers: Strangers, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    fit(classifier(strangers), make_trainer, batches, InputDriftMonitor(every_n_steps=5, dirpath=tmp_path))
    later = [row for row in rows_of(tmp_path) if row["step"] != "0"]
    assert all((float(row["drift_w1"]) > 0) == (row["layer"] != "body.0") for row in later)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_the_same_to_the_bit(
    precision: str, strangers: Strangers, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    states = []
    for callbacks in ([], [InputDriftMonitor(every_n_steps=2, dirpath=tmp_path)]):
        torch.manual_seed(0)
        module = strangers["classifier"]()
        fit(module, make_trainer, batches, *callbacks, precision=precision)
        states.append([*module.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert rows_of(tmp_path)


def test_a_resumed_run_compares_its_first_batch_with_the_saved_statistics(
    strangers: Strangers, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    images = torch.randn(1, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0)).repeat(12, 1, 1, 1, 1)

    def loader() -> DataLoader[Tensor]:
        return DataLoader(images.clone(), batch_size=None)  # type: ignore[arg-type]

    first = InputDriftMonitor(every_n_steps=5, dirpath=tmp_path)
    fit(classifier(strangers), make_trainer, loader(), first, max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    known = rows_of(tmp_path)
    # One and the same batch throughout: drift goes on from the saved statistics.
    second = InputDriftMonitor(every_n_steps=5, dirpath=tmp_path)
    make_trainer(second).fit(classifier(strangers), loader(), ckpt_path=tmp_path / "first.ckpt")
    rows = rows_of(tmp_path)
    assert rows[: len(known)] == known
    following = [row for row in rows if row["step"] == "15"]
    assert [row["layer"] for row in following] == ["body.0", "body.2", "head.1"]
    assert [row["reference_w1"] for row in following if row["layer"] == "body.0"] == ["0.0"]
    assert all(float(row["reference_w1"]) > 0 for row in following if row["layer"] != "body.0")


def test_another_run_of_the_same_callback_begins_anew(
    strangers: Strangers, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = InputDriftMonitor(every_n_steps=5, dirpath=tmp_path)
    for _ in range(2):
        fit(classifier(strangers), make_trainer, batches, monitor, max_epochs=1)
        assert {row["drift_w1"] for row in rows_of(tmp_path) if row["step"] == "0"} == {""}
    assert monitor._reference is None


def test_the_state_loads_with_weights_only(strangers: Strangers, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    monitor = InputDriftMonitor(every_n_steps=5, dirpath=tmp_path)
    images = DataLoader(torch.randn(6, 4, 1, 6, 6), batch_size=None)  # type: ignore[arg-type]
    fit(classifier(strangers), make_trainer, images, monitor, max_epochs=1)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    other = InputDriftMonitor(every_n_steps=5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict()["drift"]["keys"] == monitor.state_dict()["drift"]["keys"] != []


def test_arguments_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        InputDriftMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match="max_layers is 0"):
        InputDriftMonitor(max_layers=0)
