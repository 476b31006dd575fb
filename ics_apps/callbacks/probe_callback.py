"""What the callbacks around a probe share: the schedule, the batch's loss, the files, the loggers, the bill.

What is measured is in `ics_apps.probes`, one callback a probe beside this file.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ics_apps.callbacks.activation_monitor import ActivationMonitor
from ics_apps.callbacks.logger_scalars import LoggerScalars
from ics_apps.callbacks.loss_scale import loss_scale
from ics_apps.callbacks.step_table import StepTable
from ics_apps.callbacks.training_loss import training_loss
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError
from ics_apps.runs.layout import PROBES


@dataclass(frozen=True, slots=True)
class Occasion:
    """One training step at which a probe measures.

    Attributes:
        trainer: the trainer.
        module: its module, in the mode in which it trains.
        batch: the batch that is about to be trained on, on the module's device.
        batch_idx: its number.
        loss: the batch's loss; inside, nothing is logged.
        grad_scale: what the loss is multiplied by under AMP, 1 without a scaler.
    """

    trainer: Trainer
    module: LightningModule
    batch: Any
    batch_idx: int
    loss: Callable[[], Tensor]
    grad_scale: float

    def objective(self) -> Objective:
        """The batch's loss as a function of the weights; to be used in a `with` block."""
        return Objective(self.module, self.loss, grad_scale=self.grad_scale)

    @property
    def largest_lr(self) -> float:
        """The largest learning rate of the optimizers, 0 if there is none."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        return max((float(group["lr"]) for group in groups if "lr" in group), default=0.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it.

    Attributes:
        rows: for each table, rows by column, without `step`.
        scalars: for the loggers, keyed `<probe>/<figure>`.
    """

    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    scalars: Mapping[str, float] = field(default_factory=dict)


class ProbeCallback(Callback, ABC):
    """Measures at every `every_n_steps`-th optimizer step, before the step, on the batch that is about to be used.

    Training is not changed: a probe leaves the model as it was to the bit, and what it measures is neither logged by
    the module nor seen by an `ActivationMonitor`. A probe that fails says so once and measures no more. Under gradient
    accumulation the first micro-batch is measured. In a process group each rank measures its own batch, and rank zero
    writes; a model that is sharded (FSDP) cannot be measured. When training ends its share of the time is said.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        loss: name of a method `(batch) -> scalar loss` of the module; None for `probe_loss` if there is one, else
            `training_step`. A module that steps its optimizers by hand needs one.
        dirpath: folder of the files; `probes` in the trainer's log directory by default.

    Raises:
        ValueError: an argument out of range.
    """

    # Columns of each file `<name>.csv`, without `step`.
    tables: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, every_n_steps: int, loss: str | None = None, dirpath: str | Path | None = None) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; give at least 1.")
        self.every_n_steps = every_n_steps
        self.loss = loss
        self.dirpath = dirpath
        self.seconds = 0.0  # spent on measuring in this fit
        self._name = type(self).__name__
        self._loggers = LoggerScalars(self._name)
        self._files: dict[str, StepTable] = {}
        self._turn = -1  # number of the last measurement: its step // every_n_steps
        self._count = 0
        self._began = 0.0
        self._failed = False

    @abstractmethod
    def measure(self, occasion: Occasion) -> Measured | None:
        """Measure at one step; whatever the model loses here, the probe has to put back. None: nothing to write yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the files, now that the step at which training goes on is known."""
        folder = Path(self.dirpath) if self.dirpath else Path(trainer.log_dir or trainer.default_root_dir) / PROBES
        self._failed, self.seconds, self._count, self._began = False, 0.0, 0, time.perf_counter()
        if trainer.global_step == 0:
            self._turn = -1
        self._files = {}
        # A trial run leaves no files, and only rank zero writes.
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        for name, columns in self.tables.items():
            self._files[name] = StepTable(folder / f"{name}.csv", ("step", *columns))
            self._files[name].drop_from(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure if it is due."""
        if self._is_due(trainer.global_step):
            self._attempt(trainer, lambda: self.measure(self._occasion(trainer, pl_module, batch, batch_idx)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took."""
        share = self.seconds / max(time.perf_counter() - self._began, 1e-9)
        if self._count:
            plural = "s" if self._count > 1 else ""
            rank_zero_info(
                f"{self._name}: {self._count} measurement{plural} took {self.seconds:.1f} s, {share:.1%} of the "
                f"training's time, one at every {self.every_n_steps} steps."
            )

    def state_dict(self) -> dict[str, Any]:
        """When the last measurement was; loads under `weights_only=True`."""
        return {"turn": self._turn, "every_n_steps": self.every_n_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        # With another interval the numbering is another one too: the next step is measured.
        self._turn = state_dict["turn"] if state_dict["every_n_steps"] == self.every_n_steps else -1

    def _is_due(self, step: int) -> bool:
        """Whether a measurement is due at this step; says so once a step."""
        turn = step // self.every_n_steps
        if self._failed or turn == self._turn:
            return False
        self._turn = turn
        return True

    def _occasion(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Occasion:
        loss = training_loss(trainer, pl_module, batch, batch_idx, self.loss)
        return Occasion(trainer, pl_module, batch, batch_idx, loss, loss_scale(trainer))

    def _attempt(self, trainer: Trainer, measure: Callable[[], Measured | None], step: int | None = None) -> None:
        """Measure and write, at the present step if none is given; a failure ends the measuring, not the training."""
        began = time.perf_counter()
        try:
            with _unwatched(trainer):
                measured = measure()
        except Exception as error:  # a probe may fail in as many ways as there are models
            if isinstance(error, ProbeError) and loss_scale(trainer) > 1:
                # Under a scaler the gradients of the first steps overflow, until it has found its factor.
                rank_zero_warn(f"{self._name} measures nothing at step {trainer.global_step}: {error}")
                return
            self._failed = True
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            rank_zero_warn(f"{self._name} measures no more in this run: {kind}{error}")
            return
        finally:
            self.seconds += time.perf_counter() - began
        if measured is not None:
            self._count += 1
            self.write(trainer, trainer.global_step if step is None else step, measured)

    def write(self, trainer: Trainer, step: int, measured: Measured) -> None:
        """Write what was measured at a step to the files and the loggers."""
        for name, rows in measured.rows.items():
            if name in self._files:
                self._files[name].add([{"step": step, **row} for row in rows])
        if trainer.is_global_zero:
            self._loggers.write(trainer.loggers, step, measured.scalars)


def defined(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the figures that are NaN, whose cells stay empty.

    Example:
        >>> defined({"layer": "fc", "cosine": math.nan})
        {'layer': 'fc'}
    """
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


@contextmanager
def _unwatched(trainer: Trainer) -> Iterator[None]:
    """Forwards inside are not seen by activation monitors."""
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ActivationMonitor):
                stack.enter_context(callback.muted())
        yield
