"""Callbacks of probes: when they measure, what they write, and that training does not notice them."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor
from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback
from ics_apps.probes.preserve import ProbeError
from tests.callbacks.conftest import Adversarial, Classifier, Validated
from tests.callbacks.test_logger_scalars import Kept

MakeTrainer = Callable[..., Trainer]
Strangers = dict[str, type[LightningModule]]


class Slope(ProbeCallback):
    """The loss and its gradient at half the weights: it moves all that a probe may move."""

    tables: ClassVar = {"slope": ("loss", "grad_norm")}

    def __init__(self, every_n_steps: int = 5, **options: Any) -> None:
        super().__init__(every_n_steps, **options)
        self.occasions: list[Occasion] = []

    def measure(self, occasion: Occasion) -> Measured | None:
        self.occasions.append(occasion)
        with occasion.objective() as objective:
            objective.set_weights([weight / 2 for weight in objective.weights()])
            norm = sum(float(g.square().sum()) for g in objective.gradient()) ** 0.5
            row = {"loss": objective.value(), "grad_norm": norm}
        return Measured({"slope": [row]}, {"slope/loss": row["loss"]})


class Failing(Slope):
    def __init__(self, error: Exception) -> None:
        super().__init__(1)
        self.error = error

    def measure(self, occasion: Occasion) -> Measured | None:
        super().measure(occasion)
        raise self.error


class Probed(Adversarial):
    def probe_loss(self, batch: Tensor) -> Tensor:
        return self.d(self.g(torch.randn(len(batch), 8))).square().mean()


class InPlace(Classifier):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch.mul_(0.5)
        return self(batch).square().mean()


class Logging(Classifier):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


def rows(folder: Path, table: str = "slope") -> list[dict[str, str]]:
    with (folder / "probes" / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder)]


def trained(trainer: Trainer, module: type[LightningModule], batches: Any) -> dict[str, Tensor]:
    seed_everything(0, verbose=False)
    net = module()
    validation = batches if isinstance(net, Validated) else None
    trainer.fit(net, batches, validation)
    return {**net.state_dict(), "random": torch.get_rng_state()}


@pytest.fixture
def batches() -> DataLoader[Tensor]:
    """Fresh batches each time, as one module works in place."""
    images = torch.randn(12, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader([image.clone() for image in images], batch_size=None, collate_fn=torch.clone)  # type: ignore[arg-type]


# --- when ---


@pytest.mark.parametrize(("every", "expected"), [(1, list(range(24))), (5, [0, 5, 10, 15, 20]), (100, [0])])
def test_it_measures_at_every_nth_step(
    every: int, expected: list[int], make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    make_trainer(Slope(every)).fit(Classifier(), batches)
    assert steps(tmp_path) == expected
    assert list(rows(tmp_path)[0]) == ["step", "loss", "grad_norm"]


def test_under_accumulation_steps_are_the_optimizers_and_the_first_micro_batch_is_measured(
    make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    probe = Slope(2)
    make_trainer(probe, accumulate_grad_batches=3).fit(Classifier(), batches)
    assert steps(tmp_path) == [0, 2, 4, 6]
    assert [occasion.batch_idx for occasion in probe.occasions] == [0, 6, 0, 6]


def test_with_two_optimizers_it_measures_once_a_batch_at_most(
    make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    probe = Slope(3)
    make_trainer(probe, max_epochs=1).fit(Probed(), batches)  # two steps a batch
    assert steps(tmp_path) == [0, 4, 6, 10, 12, 16, 18, 22]
    assert [occasion.batch_idx for occasion in probe.occasions] == [0, 2, 3, 5, 6, 8, 9, 11]


def test_two_fits_in_a_row_each_begin_at_their_first_step(
    make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    probe = Slope(10)
    for _ in range(2):
        make_trainer(probe).fit(Classifier(), batches)
        assert steps(tmp_path) == [0, 10, 20]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("saved", "first_again"), [(7, 10), (10, 10), (11, 15)])
def test_a_resumed_run_drops_the_rows_that_it_writes_again_and_keeps_the_schedule(
    saved: int, first_again: int, make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    first = make_trainer(Slope(5), max_steps=saved)
    first.fit(Classifier(), batches)
    first.save_checkpoint(tmp_path / "at.ckpt")
    with (tmp_path / "probes" / "slope.csv").open("a") as file:  # it went on beyond its checkpoint, and was killed
        file.write(f"{saved},9.0,9.0\n{saved + 1},9.0,9.0\n{saved + 2},9.")
    probe = Slope(5)
    trainer = make_trainer(probe, max_epochs=-1, max_steps=24)
    trainer.fit(Classifier(), batches, ckpt_path=str(tmp_path / "at.ckpt"), weights_only=True)
    assert steps(tmp_path) == [0, 5, 10, 15, 20]
    assert not any(row["loss"].startswith("9") for row in rows(tmp_path))
    assert len(probe.occasions) == len([step for step in (0, 5, 10, 15, 20) if step >= first_again])


def test_resumed_with_another_interval_it_measures_at_once(
    make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    first = make_trainer(Slope(5), max_steps=7)
    first.fit(Classifier(), batches)
    first.save_checkpoint(tmp_path / "at.ckpt")
    make_trainer(Slope(8)).fit(Classifier(), batches, ckpt_path=str(tmp_path / "at.ckpt"), weights_only=True)
    assert steps(tmp_path) == [0, 5, 7, 8, 16]


def test_its_state_loads_as_weights_only() -> None:
    file = io.BytesIO()
    torch.save(Slope(5).state_dict(), file)
    file.seek(0)
    Slope(5).load_state_dict(torch.load(file, weights_only=True))


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0; give at least 1"):
        Slope(0)


# --- where to ---


def test_a_trial_run_leaves_no_files(make_trainer: MakeTrainer, batches: Any, tmp_path: Path) -> None:
    probe = Slope(1)
    make_trainer(probe, fast_dev_run=3).fit(Classifier(), batches)
    assert len(probe.occasions) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_folder_can_be_chosen(make_trainer: MakeTrainer, batches: Any, tmp_path: Path) -> None:
    make_trainer(Slope(dirpath=tmp_path / "here")).fit(Classifier(), batches)
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["slope.csv"]
    assert not (tmp_path / "probes").exists()


def test_nothing_measured_is_nothing_written(make_trainer: MakeTrainer, batches: Any, tmp_path: Path) -> None:
    class NotYet(Slope):
        def measure(self, occasion: Occasion) -> Measured | None:
            return super().measure(occasion) if occasion.trainer.global_step else None

    logger = Kept()
    make_trainer(NotYet(), logger=logger).fit(Classifier(), batches)
    assert [step for step, row in logger.rows if "slope/loss" in row] == [5, 10, 15, 20]


def test_loggers_get_the_scalars_at_their_steps(make_trainer: MakeTrainer, batches: Any, tmp_path: Path) -> None:
    logger = Kept()
    make_trainer(Slope(), logger=logger).fit(Classifier(), batches)
    found = [(step, row["slope/loss"]) for step, row in logger.rows if "slope/loss" in row]
    assert found == [(int(row["step"]), float(row["loss"])) for row in rows(tmp_path)]


# --- training does not notice ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kind, options)
        for kind in ("classifier", "validated", "checkpointed", "shared", "gan", "in_place")
        for options in ({}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"})
        # Lightning accumulates no gradients for modules that step by hand.
        if (kind, *options) != ("gan", "accumulate_grad_batches")
    ],
    ids=str,
)
def test_training_is_the_same_to_the_bit(
    kind: str, options: dict[str, Any], strangers: Strangers, make_trainer: MakeTrainer, batches: Any
) -> None:
    module = {**strangers, "gan": Probed, "in_place": InPlace}[kind]
    probe = Slope(2)
    without = trained(make_trainer(**options), module, batches)
    measured = trained(make_trainer(probe, **options), module, batches)
    assert probe.occasions
    assert list(measured) == list(without)
    assert all(torch.equal(measured[name], without[name]) for name in without)


def test_what_the_module_logs_is_the_same(make_trainer: MakeTrainer, batches: Any) -> None:
    logged = []
    for callbacks in ([], [Slope(2)]):
        logger = Kept()
        trained(make_trainer(*callbacks, logger=logger), Logging, batches)
        logged.append([(step, row) for step, row in logger.rows if "slope/loss" not in row])
    assert logged[0] == logged[1]
    assert any("loss_epoch" in row for _, row in logged[0])


@pytest.mark.parametrize("probe_first", [True, False])
@pytest.mark.parametrize("kind", ["classifier", "checkpointed", "shared", "gan"])
def test_an_activation_monitor_does_not_see_the_probes_forwards(
    kind: str, probe_first: bool, strangers: Strangers, make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    module = {**strangers, "gan": Probed}[kind]
    tables = []
    for name in ("without", "with"):
        callbacks = [Slope(2)] if name == "with" else []
        callbacks.insert(len(callbacks) * probe_first, ActivationMonitor(3, alarms=[], dirpath=tmp_path / name))  # type: ignore[arg-type]
        trained(make_trainer(*callbacks), module, batches)
        tables.append(pd.read_parquet(tmp_path / name).sort_values(["step", "order", "call"], ignore_index=True))
    assert len(tables[0]) > 0
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


# --- failures, and the bill ---


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ProbeError("The loss is nan."), "Failing measures no more in this run: The loss is nan."),
        (RuntimeError("no kernel"), "Failing measures no more in this run: RuntimeError: no kernel"),
    ],
)
def test_a_failure_is_said_once_and_training_goes_on(
    error: Exception, sentence: str, make_trainer: MakeTrainer, batches: Any, tmp_path: Path
) -> None:
    probe, trainer = Failing(error), make_trainer(Slope(5))
    without = trained(trainer, Classifier, batches)
    trainer = make_trainer(probe)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        after = trained(trainer, Classifier, batches)
    assert [str(w.message) for w in said if "Failing" in str(w.message)] == [sentence]
    assert len(probe.occasions) == 1
    assert trainer.global_step == 24
    assert all(torch.equal(after[name], without[name]) for name in without)


def test_under_a_scaler_a_step_that_overflows_is_left_out_and_the_next_one_is_tried(
    make_trainer: MakeTrainer, batches: Any
) -> None:
    class Scaler:
        def get_scale(self) -> float:
            return 65536.0

    probe = Failing(ProbeError("The gradient overflows."))
    trainer = make_trainer(probe)
    trainer.precision_plugin.scaler = Scaler()  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"Failing measures nothing at step \d+: The gradient overflows"):
        trainer.fit(Classifier(), batches)
    assert len(probe.occasions) == 24


def test_a_module_that_steps_by_hand_is_told_what_to_write(make_trainer: MakeTrainer, batches: Any) -> None:
    trainer = make_trainer(Slope())
    with pytest.warns(UserWarning, match=r"Slope measures no more .* give it a method `probe_loss\(batch\)`"):
        trainer.fit(Adversarial(), batches)
    assert trainer.global_step == 48


def test_the_share_of_the_time_is_said_at_the_end(
    make_trainer: MakeTrainer, batches: Any, caplog: pytest.LogCaptureFixture
) -> None:
    probe = Slope(5)
    with caplog.at_level("INFO"):
        make_trainer(probe).fit(Classifier(), batches)
    [said] = [record.message for record in caplog.records if record.message.startswith("Slope")]
    assert said.startswith(f"Slope: 5 measurements took {probe.seconds:.1f} s, ")
    assert said.endswith("% of the training's time, one at every 5 steps.")
    assert probe.seconds > 0


def test_no_measurement_has_no_bill(make_trainer: MakeTrainer, batches: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="measures no more"):
        make_trainer(Slope()).fit(Adversarial(), batches)
    assert not [record for record in caplog.records if record.message.startswith("Slope:")]


def test_without_a_scaler_the_scale_is_one(make_trainer: MakeTrainer, batches: Any) -> None:
    probe = Slope(100)
    make_trainer(probe).fit(Classifier(), batches)
    assert probe.occasions[0].grad_scale == 1.0
