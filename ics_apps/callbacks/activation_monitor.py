"""Watch the layers of any LightningModule while it trains.

Only the schedule, the files and the loggers are here; what is measured, and how, is in `ics_apps.probes`.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ics_apps.callbacks.monitor_parts import MonitorParts
from ics_apps.probes.recorder import COLUMNS, Recorder, Table
from ics_apps.probes.taps import LayerTest, select_layers
from ics_apps.runs.layout import MONITOR

# Columns that are numbers, which a logger can take.
STATISTICS: Final = tuple(name for name in COLUMNS if name not in ("layer", "call", "kind", "type", "order"))


class ActivationMonitor(Callback):
    """See each layer's distribution, its drift, saturation and dead channels, at under 1 % of the training step.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.ActivationMonitor

    Python, with any LightningModule::

        from ics_apps.callbacks import ActivationMonitor
        trainer = Trainer(callbacks=[ActivationMonitor()])
        trainer.fit(model)

    and afterwards `pandas.read_parquet(folder)`: one row per (step, layer, call).

    At every `every_n_steps`-th optimizer step each watched layer's output is read from a strided sample of at most
    `sample_size` elements (`ics_apps.probes.Recorder`). Under gradient accumulation the first micro-batch of the step
    is read; several forwards of a layer in a step (a GAN's discriminator) are calls 0, 1, ...; recomputation under
    activation checkpointing, validation and the sanity check are not read. Training is not changed: weights, gradients,
    buffers, modes and random numbers are the same to the bit with and without it.

    Columns: `step` (optimizer steps done when read), `epoch`, `layer` (all names of a shared module, joined by `+`),
    `call`, `kind`, `type`, `order` (of the first forward), `count` (values read), `mean`, `std` (biased), `rms`, `min`,
    `max`, `q15`, `q50`, `q85`, `zero_fraction`, `saturated_fraction` (derivative below 5 % of its maximum; NaN for
    unbounded activations and other layers), `nonfinite_count`, `channels`, `dead_channels` (0 in 100 values read in a
    row; -1 where not known), `drift_kl` and `drift_w1` (against the previous sample of the same layer and call:
    symmetrised Gaussian KL, and Wasserstein-1 in units of the previous std; about 0.03 is sampling noise),
    `running_gap` (norms with running statistics: median over channels of |batch mean - running mean| / running std).
    Statistics are over the finite values read, on rank zero, of that rank's shard.

    Files: `part-<first step>.parquet` in `dirpath`, written at the end of each epoch, with each checkpoint, every 32
    samples and when training ends in whatever way. A run that is resumed at step s drops rows of step >= s, which it
    writes again, and keeps the earlier ones; a run that starts at step 0 drops all.

    Logs: `monitor/<layer>/<statistic>` (`monitor/<layer>#<call>/...` from call 1 on, the first name of a shared layer),
    for norms and streams where the model has some or layers were not chosen by hand, else for every watched layer, to
    each logger of the trainer. A logger with the attribute `accepts_monitor_scalars = False` is left out: set it on a
    logger that would make a column of each key.

    Args:
        every_n_steps: optimizer steps between two samples, >= 1. At 20, a resnet18 pays about 0.3 % of its step.
        layers: what to watch: None for every norm, convolution, linear and activation layer and every stream of a
            `NormalizedConcat`; or a kind (`norm`), a class name (`Conv2d`), a dotted name or a pattern (`encoder.*`),
            in Python also a class or a test `(name, module) -> bool`; or a list of these.
        max_layers: the most layers to watch, >= 1; streams and norms are kept first, and what is left out is said once.
        sample_size: the most elements read of one output, >= 64.
        log_scalars: statistics sent to the loggers, any of the numeric columns; an empty list for none.
        dirpath: folder of the files; by default `monitor` in the trainer's log directory.

    Raises:
        ValueError: an argument out of range, an unknown statistic, or (when fitting starts) layers that match nothing.

    Example:
        >>> ActivationMonitor(log_scalars=["rsm"])
        Traceback (most recent call last):
        ...
        ValueError: log_scalars: 'rsm' is no statistic of the monitor; did you mean 'rms'?

    Reference: ours; the quantiles follow Ioffe and Szegedy 2015, Fig. 1.
    """

    def __init__(
        self,
        every_n_steps: int = 20,
        layers: str | list[str] | LayerTest | None = None,
        max_layers: int = 64,
        sample_size: int = 4096,
        log_scalars: Sequence[str] = ("rms", "drift_w1"),
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("every_n_steps", every_n_steps, 1),
            ("max_layers", max_layers, 1),
            ("sample_size", sample_size, 64),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}.")
        for statistic in log_scalars:
            if statistic not in STATISTICS:
                near = difflib.get_close_matches(statistic, STATISTICS, n=1, cutoff=0.0)[0]
                raise ValueError(f"log_scalars: '{statistic}' is no statistic of the monitor; did you mean '{near}'?")
        self.every_n_steps = every_n_steps
        self.layers = layers
        self.max_layers = max_layers
        self.sample_size = sample_size
        self.log_scalars = tuple(log_scalars)
        self.dirpath = dirpath
        self._turn = -1  # number of the last sample: its step // every_n_steps
        self._memory: dict[str, Any] | None = None  # the recorder's state while there is no recorder
        self._recorder: Recorder | None = None
        self._parts: MonitorParts | None = None
        self._reading = (0, 0)  # step and epoch of the sample being read
        self._failed: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layers and put the hooks on: before anything is compiled, or torch would never call them."""
        if not trainer.is_global_zero:
            return
        selection = select_layers(pl_module, self.layers, self.max_layers)
        if selection.left_out:
            rank_zero_info(f"ActivationMonitor: {selection.describe()}")
        if not selection.chosen:
            rank_zero_warn(
                "ActivationMonitor found no norm, convolution, linear or activation layer; name some layers."
            )
        self._recorder = Recorder(selection.chosen, self.sample_size)
        self._recorder.attach()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the folder, now that the step at which training goes on is known."""
        folder = Path(self.dirpath) if self.dirpath else Path(trainer.log_dir or trainer.default_root_dir) / MONITOR
        if self._recorder is None:
            return
        if trainer.global_step == 0:
            self._turn, self._memory = -1, None
        if self._memory is not None:
            self._recorder.load_state_dict(self._memory)
        if getattr(trainer, "fast_dev_run", False):  # a trial run leaves no files
            return
        self._parts = MonitorParts(folder)
        dropped = self._parts.drop_from(trainer.global_step)
        if dropped:
            rank_zero_info(
                f"ActivationMonitor: {dropped} rows of step >= {trainer.global_step} in {folder} are dropped."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the recorder if a sample is due."""
        if self._recorder is None:
            return
        step = trainer.global_step
        turn = step // self.every_n_steps
        if turn != self._turn:
            self._turn = turn
            self._reading = (step, trainer.current_epoch)
            self._recorder.start(turn)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Fetch the sample, if one was read."""
        if self._recorder is None or not self._recorder.open:
            return
        table = self._recorder.close()
        step, epoch = self._reading
        if self._parts is not None:
            self._parts.add(step, epoch, table)
        if self.log_scalars and trainer.loggers:
            self._log(trainer.loggers, step, self._scalars(table))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give up a sample that is still open: its batch was skipped."""
        if self._recorder is not None and self._recorder.open:
            self._recorder.discard()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was read in the epoch."""
        self.on_validation_start(trainer, pl_module)
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
        """The number of the last sample and what the next one is compared with; loads under `weights_only=True`."""
        memory = self._memory if self._recorder is None else self._recorder.state_dict()
        return {"turn": self._turn, "every_n_steps": self.every_n_steps, "memory": memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._memory = state_dict["memory"]
        # With another interval the numbering of samples is another one too: the next step is read.
        self._turn = state_dict["turn"] if state_dict["every_n_steps"] == self.every_n_steps else -1

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings and the memory, not the hooks, buffers and files."""
        return {**self.__dict__, "_memory": self.state_dict()["memory"], "_recorder": None, "_parts": None}

    def _finish(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()
            self._memory = self._recorder.state_dict()
            self._recorder = None
        self._flush()
        self._parts = None

    def _flush(self) -> None:
        if self._parts is not None:
            self._parts.flush()

    def _scalars(self, table: Table) -> dict[str, float]:
        scalars: dict[str, float] = {}
        streams_and_norms = [kind in ("stream", "norm") for kind in table["kind"]]
        everything = self.layers is not None or not any(streams_and_norms)
        for row, chosen in enumerate(streams_and_norms):
            if not (chosen or everything):
                continue
            name, call = table["layer"][row].split("+")[0], table["call"][row]
            for statistic in self.log_scalars:
                value = float(table[statistic][row])
                if not math.isnan(value):
                    scalars[f"monitor/{name}#{call}/{statistic}" if call else f"monitor/{name}/{statistic}"] = value
        return scalars

    def _log(self, loggers: Sequence[Logger], step: int, scalars: dict[str, float]) -> None:
        for logger in loggers:
            name = type(logger).__name__
            if not getattr(logger, "accepts_monitor_scalars", True) or name in self._failed or not scalars:
                continue
            try:
                logger.log_metrics(scalars, step=step)
            except Exception as error:  # a logger may raise anything, and training must go on
                self._failed.add(name)
                warnings.warn(
                    f"ActivationMonitor: {name} failed and gets no more scalars: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
