"""What the conditioning monitor writes, and that training does not notice it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks.conditioning_monitor import ConditioningMonitor


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "conditioning.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_measurement_has_a_row_a_layer(
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    make_trainer(ConditioningMonitor(every_n_steps=10, dirpath=tmp_path)).fit(strangers["classifier"](), batches)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["step", *ConditioningMonitor.tables["conditioning"]]
    assert [(row["step"], row["layer"], row["order"], row["features"]) for row in rows] == [
        (step, *layer) for step in ("0", "10", "20") for layer in (("body.0", "0", "1"), ("head.1", "1", "144"))
    ]
    # One channel is always well conditioned; four samples of 144 features never are.
    assert [float(row["condition"]) for row in rows if row["layer"] == "body.0"] == [1.0] * 3
    assert all(float(row["condition"]) > 1000 for row in rows if row["layer"] == "head.1")
    assert all(1 <= float(row["effective_rank"]) <= 4 + 1e-9 for row in rows)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["classifier", "checkpointed", "shared"])
def test_training_goes_on_as_if_nothing_had_been_measured(
    name: str,
    precision: str,
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    finals = []
    for callbacks in ([], [ConditioningMonitor(every_n_steps=5, dirpath=tmp_path)]):
        torch.manual_seed(0)
        module = strangers[name]()
        make_trainer(*callbacks, precision=precision).fit(module, batches)
        finals.append((module.state_dict(), torch.get_rng_state()))
    (plain, state), (watched, state_watched) = finals
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert torch.equal(state, state_watched)
    assert rows_of(tmp_path)


class Dead(LightningModule):
    """The second layer sees zeros only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 3), nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.second(0 * self.first(batch.flatten(1))).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_layer_that_sees_zeros_has_empty_cells_and_is_not_the_worst(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    measured = []

    class Noting(ConditioningMonitor):
        def measure(self, occasion: Any) -> Any:
            measured.append(super().measure(occasion))
            return measured[-1]

    make_trainer(Noting(every_n_steps=100, dirpath=tmp_path)).fit(Dead(), batches)
    first, second = rows_of(tmp_path)
    assert (second["features"], second["condition"], second["effective_rank"], second["damping"]) == ("3", "", "", "")
    assert measured[0].scalars["conditioning/worst"] == float(first["condition"])
    assert math.isfinite(measured[0].scalars["conditioning/median"])


def test_a_model_of_dead_layers_only_logs_nothing(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    make_trainer(ConditioningMonitor(layers="second", dirpath=tmp_path)).fit(Dead(), batches)
    (row,) = rows_of(tmp_path)
    assert (row["layer"], row["condition"]) == ("second", "")


def test_a_layer_that_cannot_be_measured_is_named(
    strangers: dict[str, type[LightningModule]], batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer]
) -> None:
    monitor = ConditioningMonitor(layers="norm")
    with pytest.warns(UserWarning, match=r"measures no more in this run: layers: body\.1 is no convolution or linear"):
        make_trainer(monitor).fit(strangers["classifier"](), batches)


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"max_layers": 0}])
def test_arguments_out_of_range_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is 0; give at least 1"):
        ConditioningMonitor(**options)
