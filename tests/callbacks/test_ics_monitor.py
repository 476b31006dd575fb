"""ICSMonitor on a Trainer: training unchanged, the file, accumulation, optimizers that step by hand."""

from __future__ import annotations

import copy
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

from ics_apps.callbacks.ics_monitor import ICSMonitor

MakeTrainer = Callable[..., Trainer]
COLUMNS = ["step", "layer", "order", "grad_norm", "shift", "relative_shift", "cosine"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "ics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(
    module_type: type[LightningModule], make_trainer: MakeTrainer, batches: Any, *callbacks: Any, **options: Any
) -> tuple[LightningModule, Trainer]:
    torch.manual_seed(0)
    module, trainer = module_type(), make_trainer(*callbacks, **options)
    trainer.fit(module, batches)
    return module, trainer


def with_probe_loss(adversarial: type[LightningModule]) -> type[LightningModule]:
    class Probed(adversarial):  # type: ignore[misc, valid-type]
        def probe_loss(self, batch: Tensor) -> Tensor:
            return nn.functional.softplus(-self.d(self.g(torch.randn(len(batch), 8)))).mean()

    return Probed


@pytest.mark.parametrize("name", ["classifier", "checkpointed", "gan"])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_training_is_the_same_to_the_bit(
    name: str,
    options: dict[str, Any],
    strangers: dict[str, type[LightningModule]],
    make_trainer: MakeTrainer,
    batches: DataLoader[Tensor],
    tmp_path: Path,
) -> None:
    module_type = with_probe_loss(strangers[name]) if name == "gan" else strangers[name]
    if name == "gan":
        options = {key: value for key, value in options.items() if key == "precision"}  # it does not accumulate
    states = []
    for callbacks in ([], [ICSMonitor(every_n_steps=3, dirpath=tmp_path)]):
        module, trainer = fit(module_type, make_trainer, batches, *callbacks, **options)
        moments = [s for o in trainer.optimizers for e in o.state.values() for s in e.values()]
        states.append([*module.state_dict().values(), *moments, torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert rows_of(tmp_path)


def test_each_measurement_is_one_row_a_layer_at_the_step_before_the_step(
    strangers: dict[str, type[LightningModule]],
    make_trainer: MakeTrainer,
    batches: DataLoader[Tensor],
    tmp_path: Path,
) -> None:
    fit(strangers["classifier"], make_trainer, batches, ICSMonitor(every_n_steps=10, dirpath=tmp_path))
    rows = rows_of(tmp_path)
    assert list(rows[0]) == COLUMNS
    assert [(row["step"], row["layer"]) for row in rows] == [
        (step, layer) for step in ("0", "10", "20") for layer in ("body.0", "head.1")
    ]
    for row in rows:
        if row["order"] == "0":
            assert (row["shift"], row["relative_shift"], row["cosine"]) == ("0.0", "0.0", "1.0")
        else:
            assert float(row["relative_shift"]) > 0


class Recorded(LightningModule):
    """Two weights and SGD with momentum; it notes the weights before each step and the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(36, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        self.weights: list[nn.Module] = []
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch.flatten(1).double()).square().mean()
        return loss

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.weights.append(copy.deepcopy(self.net))
        self.seen.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_first_micro_batch_is_measured_across_the_real_step(
    accumulate: int, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = ICSMonitor(every_n_steps=2, layers="net.2", dirpath=tmp_path)
    module, _ = fit(Recorded, make_trainer, batches, monitor, accumulate_grad_batches=accumulate, max_epochs=1)
    assert isinstance(module, Recorded)
    row = rows_of(tmp_path)[1]
    assert row["step"] == "2"
    batch = module.seen[2 * accumulate].flatten(1).double()
    old, new = module.weights[2 * accumulate], module.weights[3 * accumulate]

    def gradient(lower: nn.Module) -> Tensor:
        mixed = copy.deepcopy(old)
        mixed[0].load_state_dict(lower[0].state_dict())  # type: ignore[index]
        mixed.zero_grad()
        mixed(batch).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in mixed[2].parameters()])  # type: ignore[index]

    g, h = gradient(old), gradient(new)
    assert float(row["shift"]) == pytest.approx(float((g - h).norm()), rel=1e-10)
    assert float(row["cosine"]) == pytest.approx(float(g @ h / g.norm() / h.norm()), abs=1e-10)


def test_both_nets_of_a_gan_have_moved_when_the_upper_one_is_measured(
    strangers: dict[str, type[LightningModule]],
    make_trainer: MakeTrainer,
    batches: DataLoader[Tensor],
    tmp_path: Path,
) -> None:
    fit(with_probe_loss(strangers["gan"]), make_trainer, batches, ICSMonitor(every_n_steps=4, dirpath=tmp_path))
    rows = rows_of(tmp_path)
    # Two optimizer steps a batch.
    assert [row["layer"] for row in rows if row["step"] == "4"] == ["g.0", "d.0", "d.3"]
    assert all(float(row["shift"]) > 0 for row in rows if row["order"] != "0")


def test_medians_above_the_first_layer_go_to_the_loggers(
    strangers: dict[str, type[LightningModule]], make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    fit(strangers["classifier"], make_trainer, batches, ICSMonitor(every_n_steps=50), logger=logger)
    assert logger.log_dir is not None
    [row] = [row for row in rows_of(Path(logger.log_dir) / "probes") if row["order"] == "1"]
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        [logged] = list(csv.DictReader(file))
    assert logged["step"] == "0"
    assert float(logged["ics/median_cosine"]) == pytest.approx(float(row["cosine"]), rel=1e-5)
    assert float(logged["ics/median_relative_shift"]) == pytest.approx(float(row["relative_shift"]), rel=1e-5)


def test_a_resumed_run_writes_the_rows_of_one_that_was_not_stopped(
    strangers: dict[str, type[LightningModule]], make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    classifier = strangers["classifier"]
    fit(classifier, make_trainer, batches, ICSMonitor(every_n_steps=5, dirpath=tmp_path / "whole"))
    monitor = ICSMonitor(every_n_steps=5, dirpath=tmp_path / "parts")
    _, trainer = fit(classifier, make_trainer, batches, monitor, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    again = ICSMonitor(every_n_steps=5, dirpath=tmp_path / "parts")
    make_trainer(again).fit(classifier(), batches, ckpt_path=tmp_path / "first.ckpt")
    steps = [row["step"] for row in rows_of(tmp_path / "parts")]
    assert steps == [row["step"] for row in rows_of(tmp_path / "whole")]


class Breaking(Recorded):
    """It fails in the second batch, before any step when two are accumulated."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise RuntimeError("out of luck")
        return super().training_step(batch, batch_idx)


def test_a_step_that_was_never_taken_is_forgotten(
    make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = ICSMonitor(every_n_steps=100, dirpath=tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Breaking, make_trainer, batches, monitor, accumulate_grad_batches=2)
    assert rows_of(tmp_path) == []
    fit(Recorded, make_trainer, batches, monitor)
    assert [(row["step"], row["shift"] == "0.0") for row in rows_of(tmp_path)] == [("0", True), ("0", False)]
    assert monitor._begun is None


def test_a_misspelt_layer_is_told_once_and_training_goes_on(
    strangers: dict[str, type[LightningModule]], make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = ICSMonitor(every_n_steps=1, layers="body.00", dirpath=tmp_path)
    with pytest.warns(UserWarning, match=r"ICSMonitor measures no more.*did you mean 'body.0'") as told:
        _, trainer = fit(strangers["classifier"], make_trainer, batches, monitor)
    assert len([warning for warning in told if "ICSMonitor" in str(warning.message)]) == 1
    assert trainer.global_step == 24
    assert math.isfinite(monitor.seconds)


def test_arguments_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        ICSMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match="max_layers is 0"):
        ICSMonitor(max_layers=0)
