"""Checkpoints of a run: written whole or not at all, read from the newest that is readable.

`RunCheckpoint` keeps three files in `<run>/checkpoints`: `last` and `previous` (to continue) and `best` (to use).
What may stand in a recipe is documented on the class; how a run directory is chosen is in `directory`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ics_apps.nearest import did_you_mean
from ics_apps.runs.atomic import PART_SUFFIX, write_atomically
from ics_apps.runs.layout import BEST_CHECKPOINT, CHECKPOINTS, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT

NEWEST_FIRST: Final = (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)


class CheckpointError(ValueError):
    """A checkpoint that was asked for is missing, unreadable or not allowed."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning plugin: stream the checkpoint to a file beside the target, sync it, rename it.

    Lightning's own writer goes through the temporary folder and moves the file; where that folder is another file
    system the move is a copy, and a kill in its middle leaves a corrupt file under the good name. It also builds the
    whole file in memory first; this one streams. Files are read with `weights_only=True` and never otherwise.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        if storage_options is not None:
            raise CheckpointError("AtomicCheckpointIO writes local files and takes no storage_options; leave them out.")

        def write(file: IO[bytes]) -> None:
            torch.save(checkpoint, file)

        write_atomically(Path(path), write)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a local checkpoint that holds plain tensors and values only."""
        del weights_only  # A checkpoint that needs more than plain values could run code when read.
        return read_checkpoint(Path(path), map_location)


class RunCheckpoint(Checkpoint):
    """Keep `last`, `previous` and `best` of a run, each always whole.

    `last` is written when an epoch is entirely over: after validation, after the epoch's metrics have reached the
    loggers and after the epoch's scheduler steps. That moment is the start of the next epoch (or the end of training),
    so a run killed at any time loses no finished epoch, and a resumed run repeats nothing but the unfinished one.

    Args:
        monitor: Logged validation metric that chooses `best`, e.g. `val/dice`; None: `best` is the last epoch.
        mode: Whether the larger (`max`) or the smaller (`min`) value of `monitor` is better.

    Raises:
        CheckpointError: `monitor` was not logged by the first validation; the message names the nearest metric.
    """

    def __init__(self, monitor: str | None = None, mode: Literal["min", "max"] = "min") -> None:
        super().__init__()
        if mode not in ("min", "max"):
            raise CheckpointError(f"checkpoint.mode is {mode!r}; allowed are 'min' and 'max'.")
        self.monitor = monitor
        self.mode = mode
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self._saved_step: int | None = None
        self._between_epochs = False
        self._folder = Path()

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint, as `ckpt_path="best"` of Lightning looks for it; empty when there is none."""
        path = self._folder / BEST_CHECKPOINT
        return str(path) if path.is_file() else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder; nothing is written yet."""
        self._folder = Path(trainer.default_root_dir) / CHECKPOINTS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fresh or just loaded state needs no new file."""
        self._saved_step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights as `best` when the monitored metric has improved."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        score = self._monitored(trainer)
        if self._improves(score):
            self.best_score, self.best_epoch = score, trainer.current_epoch
            trainer.save_checkpoint(self._folder / BEST_CHECKPOINT)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before is entirely over now: keep it as `last`. A resumed epoch starts like any other."""
        # Lightning would look into the finished epoch of the checkpoint for batches to go on with, find none, skip
        # this epoch's training, and not step a schedule that moves once an epoch.
        trainer.fit_loop.restarting = False
        self._between_epochs = True
        self._save_last(trainer)
        self._between_epochs = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back the count of the epoch that has begun but has done nothing yet."""
        if self._between_epochs:
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts["ready"] = counts["completed"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch has no next one to start."""
        self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, so that a resumed run does not forget it."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of the run that is continued."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def _save_last(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        last, previous = self._folder / LAST_CHECKPOINT, self._folder / PREVIOUS_CHECKPOINT
        if trainer.is_global_zero:
            _link(last, previous)
        trainer.save_checkpoint(last)
        if self.monitor is None and trainer.is_global_zero:
            _link(last, self._folder / BEST_CHECKPOINT)

    def _monitored(self, trainer: Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            near = did_you_mean(str(self.monitor), metrics)
            raise CheckpointError(
                f"checkpoint.monitor is {self.monitor!r}, but validation logged {sorted(metrics)}{near}"
            )
        return float(metrics[str(self.monitor)])

    def _improves(self, score: float) -> bool:
        if score != score:  # NaN is never an improvement
            return False
        if self.best_score is None:
            return True
        return score > self.best_score if self.mode == "max" else score < self.best_score


@dataclass(frozen=True)
class ResumePoint:
    """Where a run is continued: the file, the optimizer batches done, the finished epochs, and files that failed."""

    path: Path
    step: int
    epoch: int
    skipped: tuple[str, ...] = ()


def newest_readable(run_dir: Path) -> ResumePoint | None:
    """The newest checkpoint of a run that can be read, trying `last`, then `previous`; None when there is none.

    `ResumePoint.skipped` holds a sentence for each newer file that could not be read.
    """
    skipped: list[str] = []
    for name in NEWEST_FIRST:
        path = run_dir / CHECKPOINTS / name
        if not path.is_file():
            continue
        try:
            return resume_point(path, tuple(skipped))
        except CheckpointError as error:
            skipped.append(str(error))
    if skipped:
        raise CheckpointError(f"no checkpoint of {run_dir} can be read: {' '.join(skipped)}")
    return None


def resume_point(path: Path, skipped: tuple[str, ...] = ()) -> ResumePoint:
    """Read how far a checkpoint has come."""
    checkpoint = read_checkpoint(path)
    try:
        loop = checkpoint["loops"]["fit_loop"]
        step = int(loop["epoch_loop.state_dict"]["_batches_that_stepped"])
        epoch = int(loop["epoch_progress"]["current"]["completed"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no training state to continue from; use --init_from to start from its weights."
        ) from error
    return ResumePoint(path, step, epoch, skipped)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint with `weights_only=True`.

    Raises:
        CheckpointError: The file is missing, cut off, or holds more than plain tensors and values.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError or OSError for a broken file
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path} could not be read ({type(error).__name__}: {reason[0] if reason else 'the file is empty'})."
        ) from error
    return checkpoint


def _link(source: Path, target: Path) -> None:
    """Let `target` be another name of `source`'s present content, without a moment in which `target` is missing."""
    if not source.is_file():
        return
    temporary = target.with_name(f".{target.name}{PART_SUFFIX}")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    temporary.replace(target)
