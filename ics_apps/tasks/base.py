"""What every task shares: how an optimizer and a schedule are made from a recipe. Nets and losses are not here.

Lightning runs the three hooks of a task in this order: `configure_model` (the net), `training_step` and its kin
(losses, metrics), `configure_optimizers`.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from ics_apps.norms.statistics import last_batch_problem


class TaskError(ValueError):
    """A task that cannot be set up as configured."""


class Task(LightningModule):
    """A LightningModule whose optimizer and schedule come from the recipe.

    Args:
        optimizer: Makes the optimizer from the parameters.
        scheduler: Makes the schedule from the optimizer; None: a constant learning rate. A schedule that takes
            `total_steps` (such as `torch.optim.lr_scheduler.OneCycleLR`) is given the number of steps of the whole
            run and moves every step; any other moves once an epoch.

    Logs:
        `train/lr`: the first parameter group's learning rate at the start of each epoch.

    Raises:
        TaskError: A schedule over the whole run without `trainer.max_epochs` or `trainer.max_steps`.
    """

    def __init__(
        self, optimizer: OptimizerCallable = torch.optim.AdamW, scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make both, and let the schedule move at its own pace."""
        optimizer = self._make_optimizer(self.parameters())
        if self._make_scheduler is None:
            return optimizer
        scheduler, interval = self._schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def on_train_start(self) -> None:
        """Say at once what the last small batch of every epoch will do to norms that pool samples."""
        loader = self.trainer.train_dataloader
        size = getattr(loader, "batch_size", None)
        if loader is None or size is None or loader.drop_last:
            return
        problem = last_batch_problem(len(loader.sampler), size, self)
        if problem:
            rank_zero_warn(problem)

    def on_train_epoch_start(self) -> None:
        """Log the learning rate once an epoch."""
        optimizer = self.trainer.optimizers[0]
        self.log("train/lr", optimizer.param_groups[0]["lr"], on_step=False, on_epoch=True, batch_size=1)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> tuple[Any, str]:
        make: Any = self._make_scheduler
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise TaskError("a schedule over the whole run needs its length: set trainer.max_epochs or max_steps.")
        try:
            return make(optimizer, total_steps=int(steps)), "step"
        except TypeError as error:
            if "total_steps" not in str(error):
                raise
            return make(optimizer), "epoch"


def not_plain(*names: str) -> list[str]:
    """Hyper-parameters to leave out of a checkpoint: objects, unless the recipe's plain text stands for them.

    A checkpoint must load with `weights_only=True`. The command line keeps every argument as the recipe wrote it; in
    Python the arguments are objects, which such a checkpoint cannot hold.
    """
    return [] if _given_hyperparameters.get() is not None else list(names)
