"""What happens to runs: copies in the middle of a step, a kill, a resumed history, errors anywhere."""

from __future__ import annotations

import copy
import io
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor

MakeTrainer = Callable[..., Trainer]
Strangers = dict[str, type[LightningModule]]


def frame(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "monitor").sort_values(["step", "order", "call"], ignore_index=True)


def alarms(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "monitor" / "_alarms.csv")


def hooks_of(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_modules = sum(len(getattr(m, kind)) for m in module.modules() for kind in kinds)
    return of_modules + sum(len(p._backward_hooks or ()) for p in module.parameters())


class Dying(LightningModule):
    """A ReLU that gives zeros from the 4th step on, four steps an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(2, 4), nn.ReLU()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if self.global_step == 4:
            with torch.no_grad():
                self.layer.bias.fill_(-100.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        y: Tensor = self.act(self.layer(batch)).mean()
        return y

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> DataLoader[Tensor]:
        values = torch.randn(4, 200, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(values, batch_size=None)  # type: ignore[arg-type]


def train(make: MakeTrainer, folder: Path, epochs: int, resume: bool = False, **options: Any) -> None:
    """Train `Dying`, as a new process would: nothing is handed on but the checkpoint."""
    saver = ModelCheckpoint(folder, save_last=True, save_top_k=0)
    monitor = ActivationMonitor(**{"every_n_steps": 1, "on_alarm": "log", "dirpath": folder / "monitor", **options})
    trainer = make(monitor, saver, max_epochs=epochs, enable_checkpointing=True)
    seed_everything(0, verbose=False)
    trainer.fit(Dying(), ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)


@pytest.mark.parametrize("patience", [3, 6])
def test_an_alarm_counts_its_patience_through_a_resumption(
    patience: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    rules = {"dead_units": {"patience": patience}}
    train(make_trainer, tmp_path / "whole", 4, alarms=rules)
    for epochs in (1, 2, 3, 4):
        train(make_trainer, tmp_path / "parts", epochs, resume=epochs > 1, alarms=rules)
    found = alarms(tmp_path / "parts")
    # Dead from step 4 on; it goes on, and is not told again.
    assert found["step"].tolist() == [3 + patience]
    pd.testing.assert_frame_equal(found, alarms(tmp_path / "whole"))
    pd.testing.assert_frame_equal(frame(tmp_path / "parts"), frame(tmp_path / "whole"))


def test_alarms_of_an_epoch_that_was_lost_are_raised_once(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    rules = {"dead_units": {"patience": 3}}
    train(make_trainer, tmp_path, 1, alarms=rules)
    first = (tmp_path / "last.ckpt").read_bytes()
    train(make_trainer, tmp_path, 2, resume=True, alarms=rules)
    assert alarms(tmp_path)["step"].tolist() == [6]
    (tmp_path / "last.ckpt").write_bytes(first)  # as if killed before the second one was saved
    train(make_trainer, tmp_path, 3, resume=True, alarms=rules)
    assert alarms(tmp_path)["step"].tolist() == [6]


def test_the_screen_is_not_filled_anew_by_every_resumption(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Blinking(Dying):
        """Dead and alive in turn."""

        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            with torch.no_grad():
                self.layer.bias.fill_(-100.0 if self.global_step % 2 else 100.0)

    said: list[str] = []
    for epochs in (1, 2, 3):
        monitor = ActivationMonitor(1, alarms={"dead_units": {"patience": 1}})
        saver = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
        trainer = make_trainer(monitor, saver, max_epochs=epochs, enable_checkpointing=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(Blinking(), ckpt_path=tmp_path / "last.ckpt" if epochs > 1 else None, weights_only=True)
        said += [str(warning.message) for warning in caught if "dead_units" in str(warning.message)]
    assert alarms(tmp_path)["step"].tolist() == [1, 3, 5, 7, 9, 11]
    assert len(said) == 3


def test_another_interval_after_a_resumption_is_taken_up_at_once(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    train(make_trainer, tmp_path, 1, every_n_steps=3)
    train(make_trainer, tmp_path, 3, resume=True, every_n_steps=4)
    table = frame(tmp_path)
    assert table["step"].unique().tolist() == [0, 3, 4, 8]
    # History goes on: only the first sample has none to be compared with.
    assert table.groupby("step")["drift_w1"].apply(lambda drift: drift.isna().all()).tolist() == [True] + [False] * 3


def test_a_layer_that_is_new_after_a_resumption_has_no_history(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    train(make_trainer, tmp_path, 1, layers=["linear"])
    train(make_trainer, tmp_path, 2, resume=True, layers=["linear", "activation"])
    table = frame(tmp_path)
    at = table[table["step"] == 4].set_index("layer")
    assert np.isnan(at.loc["act", "drift_w1"])
    assert at.loc["layer", "drift_w1"] > 0


class InTheMiddle(Callback):
    """Does something between the forward and the backward of every step."""

    def __init__(self, act: Callable[[Trainer, LightningModule], None]) -> None:
        self.act = act

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.act(trainer, pl_module)


def _deepcopy(module: LightningModule) -> LightningModule:
    return copy.deepcopy(module)


def _pickle(module: LightningModule) -> LightningModule:
    again: LightningModule = pickle.loads(pickle.dumps(module))  # noqa: S301 (its own bytes)
    return again


def _save(module: LightningModule) -> LightningModule:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again: LightningModule = torch.load(file, weights_only=False)
    return again


@pytest.mark.parametrize("method", [_deepcopy, _pickle, _save])
def test_a_copy_of_the_model_in_the_middle_of_a_sample_is_a_model_of_its_own(
    method: Callable[[LightningModule], LightningModule],
    strangers: Strangers,
    batches: DataLoader[Tensor],
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    copies: list[LightningModule] = []
    state: list[Tensor] = []

    def use(trainer: Trainer, pl_module: LightningModule) -> None:
        before = torch.get_rng_state()
        another = method(pl_module)
        another(torch.randn(4, 1, 6, 6)).mean().backward()
        torch.set_rng_state(before)
        copies.append(another)

    tables = []
    for act in (lambda *_: None, use):
        seed_everything(1, verbose=False)
        module = strangers["classifier"]()
        make_trainer(ActivationMonitor(every_n_steps=1), InTheMiddle(act), max_epochs=1).fit(module, batches)
        tables.append(frame(tmp_path))
        state.append(torch.cat([value.flatten().double() for value in module.state_dict().values()]))
    assert len(copies) == 12
    pd.testing.assert_frame_equal(*tables)
    assert torch.equal(*state)


def test_the_whole_trainers_model_and_callbacks_can_be_copied_and_train_on(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    copies: list[tuple[LightningModule, ActivationMonitor]] = []
    monitor = ActivationMonitor(every_n_steps=1)

    def take(trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 5:
            copies.append(copy.deepcopy((pl_module, monitor)))

    make_trainer(monitor, InTheMiddle(take), max_epochs=1).fit(strangers["classifier"](), batches)
    module, another = copies[0]
    other = tmp_path / "other"
    make_trainer(another, max_epochs=1, default_root_dir=other).fit(module, batches)
    assert frame(tmp_path)["step"].nunique() == frame(other)["step"].nunique() == 12


@pytest.fixture
def heard_ctrl_c() -> Iterator[None]:
    """A suite that a script started in the background inherits SIGINT as ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_leaves_whole_files_and_a_model_that_can_be_trained_again(
    batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = Dying()
    monitor = ActivationMonitor(1, alarms={"dead_units": {"patience": 1}}, on_alarm="log")

    def press(trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit):
        make_trainer(monitor, InTheMiddle(press)).fit(module)
    assert hooks_of(module) == 0
    assert frame(tmp_path)["step"].unique().tolist() == list(range(6))
    assert alarms(tmp_path)["step"].tolist() == [4]
    pickle.dumps(module)
    make_trainer(monitor, max_epochs=1).fit(module)
    assert frame(tmp_path)["step"].unique().tolist() == list(range(4))
    assert len(alarms(tmp_path)) == 1  # dead from the first step on
    assert hooks_of(module) == 0


@pytest.mark.parametrize(
    "place",
    ["on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_batch_start", "on_after_backward",
     "on_validation_batch_end", "on_train_epoch_end", "on_save_checkpoint", "on_train_end", "teardown"],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_no_hook_stays_wherever_another_callback_breaks(
    place: str,
    first: bool,
    strangers: Strangers,
    batches: DataLoader[Tensor],
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ValueError(place)

    breaking = type("Breaking", (Callback,), {place: breaks})()
    module, monitor = strangers["validated"](), ActivationMonitor(every_n_steps=1)
    saver = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    callbacks = [breaking, monitor] if first else [monitor, breaking]
    trainer = make_trainer(*callbacks, saver, enable_checkpointing=True, max_epochs=1)
    with pytest.raises(ValueError, match=place):
        trainer.fit(module, batches, batches)
    assert hooks_of(module) == 0
    assert monitor._recorder is None
