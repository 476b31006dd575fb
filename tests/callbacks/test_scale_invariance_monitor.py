"""ScaleInvarianceMonitor on a Trainer: training unchanged, the real step's rotation, what is said."""

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

from ics_apps.callbacks import scale_invariance_monitor
from ics_apps.callbacks.scale_invariance_monitor import ScaleInvarianceMonitor

MakeTrainer = Callable[..., Trainer]
COLUMNS = ["step", "layer", "norm", "effective_lr", "rotation", "expected_rotation", "weight_decay"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scale_invariance.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fit(
    module_type: type[LightningModule], make_trainer: MakeTrainer, batches: Any, *callbacks: Any, **options: Any
) -> tuple[LightningModule, Trainer]:
    torch.manual_seed(0)
    module, trainer = module_type(), make_trainer(*callbacks, **options)
    trainer.fit(module, batches)
    return module, trainer


@pytest.mark.parametrize("name", ["classifier", "checkpointed"])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_training_is_the_same_to_the_bit(
    name: str,
    options: dict[str, Any],
    strangers: dict[str, type[LightningModule]],
    make_trainer: MakeTrainer,
    batches: DataLoader[Tensor],
    tmp_path: Path,
) -> None:
    states = []
    for callbacks in ([], [ScaleInvarianceMonitor(every_n_steps=3, dirpath=tmp_path)]):
        module, trainer = fit(strangers[name], make_trainer, batches, *callbacks, **options)
        moments = [s for o in trainer.optimizers for e in o.state.values() for s in e.values()]
        states.append([*module.state_dict().values(), *moments, torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert {row["layer"] for row in rows_of(tmp_path)} == {"body.0.weight"}


class Grouped(LightningModule):
    """A layer norm behind a layer with a bias; weights before each step are noted; a learning rate that falls."""

    decayed_bias: float = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(36, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
        self.seen: list[Tensor] = []

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.net[0].parameters()]).double()  # type: ignore[union-attr]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.net(batch.flatten(1)) - 1).square().mean()
        return loss

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(self.flat())

    def configure_optimizers(self) -> Any:
        biases = [p for name, p in self.named_parameters() if name == "net.0.bias"]
        rest = [p for name, p in self.named_parameters() if name != "net.0.bias"]
        groups = [{"params": rest}, {"params": biases, "weight_decay": self.decayed_bias}]
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class UndecayedBias(Grouped):
    decayed_bias = 0.0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_rotation_is_that_of_the_real_step_with_its_learning_rate(
    accumulate: int, make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    monitor = ScaleInvarianceMonitor(every_n_steps=2, dirpath=tmp_path)
    module, _ = fit(Grouped, make_trainer, batches, monitor, accumulate_grad_batches=accumulate, max_epochs=1)
    assert isinstance(module, Grouped)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == [str(step) for step in range(0, 12 // accumulate, 2)]
    row = rows[1]
    before, after = module.seen[2 * accumulate], module.seen[3 * accumulate]
    turn = math.acos(float(before @ after / before.norm() / after.norm()))
    assert row["layer"] == "net.0.weight"
    assert float(row["rotation"]) == pytest.approx(turn, rel=1e-3)
    assert float(row["norm"]) == pytest.approx(float(before.norm()), rel=1e-6)
    rate = 0.1 * 0.5**2
    assert float(row["effective_lr"]) == pytest.approx(rate / float(before.norm()) ** 2, rel=1e-6)
    assert float(row["expected_rotation"]) == pytest.approx(math.sqrt(2 * rate * 0.01 / 1.9), rel=1e-6)
    assert row["weight_decay"] == "0.01"


def test_nothing_is_expected_where_the_bias_is_decayed_differently(
    make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    fit(UndecayedBias, make_trainer, batches, ScaleInvarianceMonitor(dirpath=tmp_path))
    [row] = rows_of(tmp_path)
    assert (row["expected_rotation"], row["weight_decay"]) == ("", "0.01")
    assert float(row["effective_lr"]) > 0


def test_what_weight_decay_does_is_said_once(
    make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(scale_invariance_monitor, "rank_zero_info", said.append)
    fit(Grouped, make_trainer, batches, ScaleInvarianceMonitor(every_n_steps=2, dirpath=tmp_path))
    assert len(said) == 1
    assert "Weight decay 0.01 on net.0.weight does not shrink the function" in said[0]


def test_the_weights_are_looked_for_at_measurements_one_four_and_sixteen(
    make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    found = scale_invariance_monitor.scale_invariant_weights
    monitor = ScaleInvarianceMonitor(every_n_steps=1, dirpath=tmp_path)

    def counted(objective: Any) -> Any:
        asked.append(monitor._asked)
        return found(objective)

    monkeypatch.setattr(scale_invariance_monitor, "scale_invariant_weights", counted)
    fit(Grouped, make_trainer, batches, monitor)
    assert asked == [1, 4, 16]


def test_both_steps_of_a_gan_are_measured(
    strangers: dict[str, type[LightningModule]], make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path
) -> None:
    class Probed(strangers["gan"]):  # type: ignore[misc, valid-type]
        def probe_loss(self, batch: Tensor) -> Tensor:
            return nn.functional.softplus(-self.d(self.g(torch.randn(len(batch), 8)))).mean()

    fit(Probed, make_trainer, batches, ScaleInvarianceMonitor(every_n_steps=4, dirpath=tmp_path))
    rows = rows_of(tmp_path)
    assert {row["layer"] for row in rows} == {"g.0.weight"}
    assert [row["step"] for row in rows] == [str(step) for step in range(0, 48, 4)]
    assert all(float(row["rotation"]) > 0 and row["expected_rotation"] == "" for row in rows)


def test_medians_go_to_the_loggers(make_trainer: MakeTrainer, batches: DataLoader[Tensor], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(Grouped, make_trainer, batches, ScaleInvarianceMonitor(), logger=logger)
    assert logger.log_dir is not None
    [row] = rows_of(Path(logger.log_dir) / "probes")
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        [logged] = list(csv.DictReader(file))
    for name in ("rotation", "expected_rotation"):
        assert float(logged[f"scale_invariance/{name}"]) == pytest.approx(float(row[name]), rel=1e-5)


def test_arguments_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        ScaleInvarianceMonitor(every_n_steps=0)
