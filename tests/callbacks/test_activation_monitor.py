"""The monitor in real trainers: it changes nothing, reads at the right steps, survives what happens to runs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor

MakeTrainer = Callable[..., Trainer]
Strangers = dict[str, type[LightningModule]]


def frame(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "monitor").sort_values(["step", "order", "call"], ignore_index=True)


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Trace(Callback):
    """Everything that training could be seen to do: gradients and modes of each batch, and all state at the end."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.seen += [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
        self.seen.append(torch.tensor([m.training for m in pl_module.modules()]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen += [value.clone() for value in pl_module.state_dict().values()]
        for optimizer in trainer.optimizers:
            states = optimizer.state_dict()["state"].values()
            self.seen += [v.clone() for state in states for v in state.values() if isinstance(v, Tensor)]
        self.seen.append(torch.get_rng_state())


@pytest.mark.parametrize("name", ["classifier", "validated", "checkpointed", "shared", "gan", "accumulate"])
def test_training_is_the_same_to_the_bit_with_and_without_it(
    name: str, strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    traces = []
    for monitors in ([], [ActivationMonitor(every_n_steps=1, on_alarm="log", dirpath=tmp_path / "monitor")]):
        seed_everything(1, verbose=False)
        module = strangers.get(name, strangers["classifier"])()
        trace = Trace()
        options = {"accumulate_grad_batches": 3} if name == "accumulate" else {}
        make_trainer(trace, *monitors, **options).fit(module, batches, batches if name == "validated" else None)
        traces.append(trace.seen)
    assert len(traces[0]) == len(traces[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*traces, strict=True))
    assert len(frame(tmp_path)) > 0


def test_defaults_read_every_thirtieth_step_and_the_figures_are_those_of_the_output(
    strangers: Strangers, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    images = torch.randn(61, 2, 1, 6, 6)
    module, outputs = strangers["classifier"](), []
    make = make_trainer(ActivationMonitor(), max_epochs=1)
    module.body[0].register_forward_hook(lambda m, args, output: outputs.append(output.detach().clone()))
    make.fit(module, DataLoader(images, batch_size=None))
    table = frame(tmp_path)
    assert table["step"].unique().tolist() == [0, 30, 60]
    conv = table[table["layer"] == "body.0"]
    expected = [outputs[step].double() for step in (0, 30, 60)]
    assert conv["mean"].tolist() == pytest.approx([float(x.mean()) for x in expected], rel=1e-5)
    assert conv["std"].tolist() == pytest.approx([float(x.std(correction=0)) for x in expected], rel=1e-5)


def test_accumulated_steps_are_read_at_their_first_micro_batch(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(ActivationMonitor(every_n_steps=2), accumulate_grad_batches=3, max_epochs=1)
    trainer.fit(strangers["classifier"](), batches)
    table = frame(tmp_path)
    assert table["step"].unique().tolist() == [0, 2]
    assert table["call"].max() == 0


def test_validation_and_sanity_check_are_not_read(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(ActivationMonitor(every_n_steps=1), max_epochs=1, val_check_interval=1)
    trainer.fit(strangers["validated"](), batches, batches)
    table = frame(tmp_path)
    assert len(table) == 12 * 4
    assert table["call"].max() == 0


def test_forwards_of_a_gan_are_kept_apart(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    monitor = ActivationMonitor(every_n_steps=5, on_alarm="log")  # four samples are a small batch
    make_trainer(monitor, max_epochs=1).fit(strangers["gan"](), batches)
    table = frame(tmp_path)
    # global_step counts both optimizers: 0, 2, 4, 6, ...; the first one in each block of five is read.
    assert table["step"].unique().tolist() == [0, 6, 10, 16, 20]
    assert table[table["layer"] == "d.0"]["call"].tolist() == [0, 1, 2] * 5
    assert table[table["layer"] == "g.0"]["call"].tolist() == [0] * 5


def test_recomputed_layers_are_read_once(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(ActivationMonitor(), max_epochs=1).fit(strangers["checkpointed"](), batches)
    assert frame(tmp_path)["layer"].tolist() == ["body.0", "body.1", "body.2", "head.1"]


def test_a_frozen_net_on_the_same_batch_has_no_drift_and_a_shifted_batch_has_the_known_one(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Still(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.PReLU()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.layer(batch).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    x = torch.linspace(1, 3, 500)
    module = Still()
    shifted = x + 2 * x.std(correction=0)
    data = DataLoader(torch.stack([x, x, shifted]), batch_size=None)  # type: ignore[arg-type]
    make_trainer(ActivationMonitor(every_n_steps=1), max_epochs=1).fit(module, data)
    table = frame(tmp_path)
    assert np.isnan(table["drift_w1"][0])
    assert table["drift_w1"][1:].tolist() == pytest.approx([0.0, 2.0], rel=1e-5)
    assert table["drift_kl"][1:].tolist() == pytest.approx([0.0, 2.0], rel=1e-5)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_hook_stays_and_no_row_is_lost_when_training_breaks(
    error: type[BaseException],
    strangers: Strangers,
    batches: DataLoader[Tensor],
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    class Breaks(Callback):
        def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
            if trainer.global_step == 7:
                raise error

    module = strangers["classifier"]()
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        make_trainer(ActivationMonitor(every_n_steps=1), Breaks()).fit(module, batches)
    assert hooks_of(module) == 0
    assert frame(tmp_path)["step"].unique().tolist() == list(range(7))


def test_no_hook_stays_after_a_fit_and_the_same_monitor_can_watch_the_next(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    monitor = ActivationMonitor(every_n_steps=4)
    for _ in range(2):
        module = strangers["classifier"]()
        make_trainer(monitor, max_epochs=1).fit(module, batches)
        assert hooks_of(module) == 0
        table = frame(tmp_path)
        assert table["step"].unique().tolist() == [0, 4, 8]
        assert table[table["step"] == 0]["drift_w1"].isna().all()


def test_a_resumed_run_leaves_the_table_of_an_uninterrupted_one(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def fit(folder: Path, epochs: int, ckpt: Path | None) -> None:
        seed_everything(3, verbose=False)
        saver = ModelCheckpoint(folder, save_last=True, save_top_k=0)
        trainer = make_trainer(
            ActivationMonitor(every_n_steps=5), saver, max_epochs=epochs, enable_checkpointing=True,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, batches, ckpt_path=ckpt, weights_only=True)

    class NoDropout(strangers["classifier"]):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body[3] = nn.Identity()

    seed_everything(3, verbose=False)
    module = NoDropout()
    fit(tmp_path / "whole", 3, None)
    seed_everything(3, verbose=False)
    module = NoDropout()
    fit(tmp_path / "parts", 1, None)
    # An epoch more that is then lost, as after a kill: its rows must not stay.
    fit(tmp_path / "parts", 2, tmp_path / "parts" / "last.ckpt")
    one_epoch = tmp_path / "parts" / "last.ckpt"
    fit(tmp_path / "parts", 3, one_epoch)
    pd.testing.assert_frame_equal(frame(tmp_path / "parts"), frame(tmp_path / "whole"))


def test_rows_are_on_disk_before_the_checkpoint_that_follows_them(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    steps: list[int] = []

    class Saves(ModelCheckpoint):
        def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
            super()._save_checkpoint(trainer, filepath)
            steps.append(int(frame(tmp_path)["step"].max()))

    saver = Saves(tmp_path, every_n_train_steps=5, save_top_k=-1)
    monitor = ActivationMonitor(every_n_steps=1)
    make_trainer(monitor, saver, enable_checkpointing=True, max_epochs=1).fit(strangers["classifier"](), batches)
    assert steps == [4, 9]


def test_the_callback_can_be_pickled_and_copied_in_the_middle_of_a_run(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    monitor = ActivationMonitor(every_n_steps=1)
    copies: list[ActivationMonitor] = []
    models: list[LightningModule] = []

    class Copies(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            copies.extend([copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))])  # noqa: S301 (its own bytes)
            models.append(copy.deepcopy(pl_module))
            models[-1](torch.randn(1, 1, 6, 6))

    make_trainer(monitor, Copies(), max_epochs=1).fit(strangers["classifier"](), batches)
    assert frame(tmp_path)["call"].max() == 0
    restored = ActivationMonitor(every_n_steps=1)
    restored.load_state_dict(copies[-1].state_dict())
    assert restored.state_dict()["turn"] == monitor.state_dict()["turn"] == 11


class Collects(Logger):
    """A logger that keeps what it is given, or fails."""

    def __init__(self, fails: bool = False, accepts: bool = True) -> None:
        super().__init__()
        self.fails, self.accepts_monitor_scalars = fails, accepts
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = version = "collects"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(key.startswith("monitor/") for key in metrics):
            if self.fails:
                raise OSError("no space left")
            self.rows.append((step, metrics))


def test_scalars_of_norms_go_to_every_logger_that_takes_them(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    takes, refuses = Collects(), Collects(accepts=False)
    monitor = ActivationMonitor(every_n_steps=5, dirpath=tmp_path / "monitor")
    make_trainer(monitor, logger=[takes, refuses], max_epochs=1).fit(strangers["classifier"](), batches)
    assert [(step, sorted(metrics)) for step, metrics in takes.rows] == [
        (0, ["monitor/body.1/rms"]),
        (5, ["monitor/body.1/drift_w1", "monitor/body.1/rms"]),
        (10, ["monitor/body.1/drift_w1", "monitor/body.1/rms"]),
    ]
    assert refuses.rows == []


def test_layers_chosen_by_hand_are_all_logged_with_their_calls(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    logger = Collects()
    monitor = ActivationMonitor(100, layers="d.0", log_scalars=["std"], dirpath=tmp_path / "monitor")
    make_trainer(monitor, logger=logger, max_epochs=1).fit(strangers["gan"](), batches)
    assert sorted(logger.rows[0][1]) == ["monitor/d.0#1/std", "monitor/d.0#2/std", "monitor/d.0/std"]


def test_a_logger_that_fails_is_left_out_after_one_warning(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    monitor = ActivationMonitor(every_n_steps=1, dirpath=tmp_path / "monitor")
    trainer = make_trainer(monitor, logger=Collects(fails=True), max_epochs=1)
    with pytest.warns(UserWarning, match="Collects failed and gets no more scalars: OSError: no space left") as caught:
        trainer.fit(strangers["classifier"](), batches)
    assert sum("Collects failed" in str(warning.message) for warning in caught) == 1
    assert frame(tmp_path)["step"].nunique() == 12


def test_files_lie_in_the_log_directory_of_the_first_logger(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="run", version="1")
    make_trainer(ActivationMonitor(), logger=logger, max_epochs=1).fit(strangers["classifier"](), batches)
    assert len(frame(tmp_path / "run" / "1")) == 4


def test_a_trial_run_leaves_no_files(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer(ActivationMonitor(), fast_dev_run=True).fit(strangers["classifier"](), batches)
    assert list(tmp_path.iterdir()) == []


def test_what_the_budget_leaves_out_is_said_once(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        make_trainer(ActivationMonitor(max_layers=2), max_epochs=2).fit(strangers["classifier"](), batches)
    said = [record.message for record in caplog.records if "ActivationMonitor" in record.message]
    assert said == [
        "ActivationMonitor: 2 of 4 layers are watched (max_layers); left out: 1 conv, 1 linear: body.0, head.1."
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0; give at least 1"),
        ({"max_layers": 0}, "max_layers is 0; give at least 1"),
        ({"sample_size": 8}, "sample_size is 8; give 64 to 65535"),
        ({"log_scalars": ["drift"]}, "'drift' is no statistic of the monitor; did you mean 'drift_"),
    ],
)
def test_wrong_arguments_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationMonitor(**options)


@pytest.mark.parametrize("layers", [None, "norm", ["Conv2d", "encoder.*"], "os.system"])
def test_a_configuration_file_gives_back_the_layers_it_was_given(layers: Any) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ActivationMonitor, "monitor")
    config = parser.parse_object({"monitor": {"layers": layers, "log_scalars": ["rms"]}})
    again = parser.instantiate(parser.parse_string(parser.dump(config))).monitor
    assert again.layers == layers
    assert again.log_scalars == ("rms",)


def test_a_misspelt_layer_stops_before_training(
    strangers: Strangers, batches: DataLoader[Tensor], make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ValueError, match=r"'body\.O' matches no layer .* did you mean 'body"):
        make_trainer(ActivationMonitor(layers="body.O")).fit(strangers["classifier"](), batches)
