"""Watch the layers of any LightningModule while it trains.

Only the schedule, the files and the loggers are here; what is measured, and how, is in `ics_apps.probes`, and what an
alarm leads to is in `monitor_alarms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ics_apps.callbacks.loss_scale import loss_scale, scaler_of
from ics_apps.callbacks.monitor_alarms import MonitorAlarms, OnAlarm
from ics_apps.callbacks.monitor_log import MonitorLog
from ics_apps.callbacks.monitor_parts import MonitorParts
from ics_apps.probes.activations.columns import Table
from ics_apps.probes.activations.compiled import compiled_before, silent_layers
from ics_apps.probes.activations.recorder import Recorder, check_sample_size
from ics_apps.probes.selection import LayerTest, select_layers
from ics_apps.runs.layout import MONITOR


@dataclass(frozen=True, slots=True)
class _Sample:
    """The sample that is being read: its step and epoch, and what is needed to read its gradients and weights."""

    step: int
    epoch: int
    lr: Mapping[int, float]
    grad_scale: float


class ActivationMonitor(Callback):
    """See each layer's distribution, drift, gradients and dead channels at about 0.4 % of the step, and be warned.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.ActivationMonitor

    Python, with any LightningModule::

        from ics_apps.callbacks import ActivationMonitor
        trainer = Trainer(callbacks=[ActivationMonitor()])
        trainer.fit(model)

    and afterwards `pandas.read_parquet(folder)`: one row per (step, layer, tag, call), and
    `pandas.read_csv(folder / "_alarms.csv")`.

    At every `every_n_steps`-th optimizer step each watched layer's output is read from a strided sample of at most
    `sample_size` elements, and the gradient with respect to it from a quarter as many (`ics_apps.probes.Recorder`).
    Under gradient accumulation the first micro-batch of the step is read. Several forwards of a layer in a step (a
    GAN's discriminator) are calls 0, 1, ..., and can be told apart by name: `with monitor.tag("fake"): ...`. The time
    steps of a recurrent cell are pooled. Recomputation under activation checkpointing, validation and the sanity check
    are not read. Training is not changed: weights, gradients, buffers, modes and random numbers are the same to the bit
    with and without it (code compiled by inductor rounds sampled steps differently, by about 1e-7). In a process group
    each rank reads its share of the sample, the shares are joined with one collective operation a sample, and the table
    is that of the joint batch.

    The columns are described in `ics_apps.probes.activations.columns`.

    Files: `part-<first step>.parquet` in `dirpath`, written every 8 samples, at the end of each epoch, with each
    checkpoint and when training ends in whatever way. Once there are 1,024 samples every second one is dropped, and
    from then on every second one is written, and so on: a run of any length keeps 512 to 1,024. A run that is resumed
    at step s drops rows of step >= s, which it writes again, and keeps the earlier ones; a run that starts at step 0
    drops all.

    Alarms, see `docs/how-to/alarms.md`: dead, saturated and constant units, exploding or vanishing activations and
    gradients, values that are not finite, drift spikes, running statistics unlike the batch, batches too small, updates
    too large or small, streams of unequal scale.

    Logs: `monitor/<layer>/<statistic>` (`monitor/<layer>#<tag or call>/...`, the first name of a shared layer), for
    norms and streams where the model has some or layers were not chosen by hand, else for every watched layer, and
    `monitor/alarms/<rule>`, to each logger of the trainer. A logger with the attribute `accepts_monitor_scalars =
    False` is left out: set it on a logger that would make a column of each key.

    Args:
        every_n_steps: optimizer steps between two samples, >= 1. At 30, a resnet18 pays about 0.4 % of its step.
        layers: what to watch: None for every norm, convolution, linear, recurrent and activation layer and every stream
            of a `NormalizedConcat`; or a kind (`norm`), a class name (`Conv2d`), a dotted name or a pattern
            (`encoder.*`), in Python also a class or a test `(name, module) -> bool`; or a list of these.
        max_layers: the most layers to watch, >= 1; streams and norms are kept first, and what is left out is said once.
        sample_size: the most elements read of one output, 64 to 65,535.
        log_scalars: statistics sent to the loggers, any of the numeric columns; an empty list for none.
        alarms: None for every rule; or the names of those to keep; or thresholds by name:
            `{dead_units: {threshold: 0.3, patience: 5}}`; an empty list for none.
        on_alarm: `warn` writes the alarm to the file and says it on the screen (three times a rule at most), `log`
            writes only, `stop` also ends training.
        dirpath: folder of the files; by default `monitor` in the trainer's log directory.

    Raises:
        ValueError: an argument out of range, an unknown statistic or rule, or (when fitting starts) layers that match
            nothing.

    Example:
        >>> ActivationMonitor(log_scalars=["rsm"])
        Traceback (most recent call last):
        ...
        ValueError: log_scalars: 'rsm' is no statistic of the monitor; did you mean 'rms'?

    Reference: ours; the quantiles follow Ioffe and Szegedy 2015, Fig. 1.
    """

    def __init__(
        self,
        every_n_steps: int = 30,
        layers: str | list[str] | LayerTest | None = None,
        max_layers: int = 64,
        sample_size: int = 1024,
        log_scalars: Sequence[str] = ("rms", "drift_w1"),
        alarms: list[str] | dict[str, dict[str, float]] | None = None,
        on_alarm: OnAlarm = "warn",
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("every_n_steps", every_n_steps, 1), ("max_layers", max_layers, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}.")
        check_sample_size(sample_size)
        self.every_n_steps = every_n_steps
        self.layers = layers
        self.max_layers = max_layers
        self.sample_size = sample_size
        self.dirpath = dirpath
        self.log_scalars = tuple(log_scalars)
        self._log = MonitorLog(self.log_scalars, everything=layers is not None)
        self._alarms = MonitorAlarms(alarms, on_alarm)
        self._turn = -1  # number of the last sample: its step // every_n_steps
        self._memory: dict[str, Any] | None = None  # the recorder's state while there is no recorder
        self._recorder: Recorder | None = None
        self._parts: MonitorParts | None = None
        self._sample: _Sample | None = None
        self._stale: list[str] = []  # parts of the model that were compiled before the hooks were there
        self._is_heard = False  # a first sample has been taken

    def tag(self, name: str) -> AbstractContextManager[None]:
        """Keep the forwards inside apart from others: their rows have `tag` = `name`.

        In a `training_step`: `with self.monitor.tag("fake"): logits = self.discriminator(fake)`.
        """
        return nullcontext() if self._recorder is None else self._recorder.tagged(name)

    def muted(self) -> AbstractContextManager[None]:
        """Forwards inside are not watched: those that a probe makes beside the training's own."""
        return nullcontext() if self._recorder is None else self._recorder.muted()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layers and put the hooks on: before anything is compiled, or torch would never call them."""
        selection = select_layers(pl_module, self.layers, self.max_layers)
        if selection.left_out or selection.scripted:
            rank_zero_info(f"ActivationMonitor: {selection.describe()}")
        if not selection.chosen:
            rank_zero_warn("ActivationMonitor found no layer to watch; name some layers.")
        self._stale = compiled_before(pl_module)
        self._is_heard = False
        self._recorder = Recorder(selection.chosen, self.sample_size, trainer.strategy.root_device)
        self._recorder.attach()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the folder, now that the step at which training goes on is known."""
        # `log_dir` is asked of all ranks at once.
        folder = Path(self.dirpath) if self.dirpath else Path(trainer.log_dir or trainer.default_root_dir) / MONITOR
        if self._recorder is None:
            return
        if trainer.global_step == 0:
            self._turn, self._memory = -1, None
            self._alarms.forget()
        if self._memory is not None:
            self._recorder.load_state_dict(self._memory)
        # A trial run leaves no files, and only rank zero writes.
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        self._parts, step = MonitorParts(folder), trainer.global_step
        dropped = self._parts.drop_from(step)
        if dropped:
            rank_zero_info(f"ActivationMonitor: {dropped} rows of step >= {step} in {folder} are dropped.")
        self._alarms.open(folder, step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the recorder if a sample is due."""
        if self._recorder is None or self._sample is not None:
            return
        step = trainer.global_step
        turn = step // self.every_n_steps
        if turn != self._turn:
            self._turn = turn
            self._sample = _Sample(step, trainer.current_epoch, _learning_rates(trainer), loss_scale(trainer))
            self._recorder.start(turn)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Fetch the sample, if one was read and the optimizer has stepped since."""
        if self._recorder is None or self._sample is None:
            return
        self._recorder.pause()
        if trainer.global_step > self._sample.step:
            self._take(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give up a sample that is still open: its batch was skipped."""
        if self._recorder is not None and self._recorder.open:
            self._recorder.discard()
            self._sample = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was read in the epoch."""
        self.on_validation_start(trainer, pl_module)
        if self._sample is not None:  # its optimizer step never came
            self._take(trainer)
        self._flush()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write first: no checkpoint is on disk before the rows of the steps behind it."""
        self._flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what there is and take the hooks off."""
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what there is and take the hooks off."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """What the next sample and the next alarm are judged by; loads under `weights_only=True`."""
        memory = self._memory if self._recorder is None else self._recorder.state_dict()
        return {
            "turn": self._turn,
            "every_n_steps": self.every_n_steps,
            "memory": memory,
            "alarms": self._alarms.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._memory = state_dict["memory"]
        self._alarms.load_state_dict(state_dict["alarms"])
        # With another interval the numbering of samples is another one too: the next step is read.
        self._turn = state_dict["turn"] if state_dict["every_n_steps"] == self.every_n_steps else -1

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings and the memory, not the hooks, buffers and files."""
        memory = self.state_dict()["memory"]
        return {**self.__dict__, "_memory": memory, "_recorder": None, "_parts": None, "_sample": None}

    def _take(self, trainer: Trainer) -> None:
        """Make the table of the sample, and hand it to the file, the alarms and the loggers."""
        if self._recorder is None or self._sample is None:
            return
        sample, self._sample = self._sample, None
        table = self._recorder.close(sample.lr, sample.grad_scale)
        if not self._is_heard:
            self._is_heard = True
            _warn_of_silence(self._recorder, table, self._stale)
        if self._parts is not None:
            self._parts.add(sample.step, sample.epoch, table)
        is_scaled = scaler_of(trainer) is not None
        fired = self._alarms.check(trainer, table, sample.step, sample.epoch, is_scaled)
        if trainer.is_global_zero:
            self._log.write(trainer.loggers, sample.step, table, fired)

    def _finish(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()
            self._memory = self._recorder.state_dict()
            self._recorder = None
        self._sample = None
        self._flush()
        self._parts = None
        self._alarms.close()

    def _flush(self) -> None:
        if self._parts is not None:
            self._parts.flush()


def _warn_of_silence(recorder: Recorder, table: Table, stale: Sequence[str]) -> None:
    """Say it if the first sample lacks layers because they were compiled before they were watched."""
    silent = silent_layers(recorder.layers, set(table["layer"].tolist()), stale)
    if silent or (recorder.layers and not len(table["layer"])):
        named = f"{len(silent)} layers ({', '.join(silent[:3])}, ...)" if silent else "the watched layers"
        rank_zero_warn(
            f"ActivationMonitor: {named} reported nothing in the first sampled step; a model that was compiled and "
            "called before it is watched has no hooks in its code: call torch.compiler.reset() before trainer.fit."
        )


def _learning_rates(trainer: Trainer) -> dict[int, float]:
    """The learning rate of each parameter, by its id."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {id(parameter): float(group["lr"]) for group in groups if "lr" in group for parameter in group["params"]}
