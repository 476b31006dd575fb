"""Re-estimate running statistics while a Trainer fits: the schedule only; the estimate is `norms.statistics`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.norms.statistics import StatisticsReport, recompute_statistics


class RecomputeStatistics(Callback):
    """Validate, test and save with the exact running statistics of batch norm instead of their moving average.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.RecomputeStatistics
              init_args:
                max_batches: 200
                input_key: image

    Before each validation of a `fit` (and at the end of an epoch without one, but not in the sanity check) the running
    statistics of every layer are estimated from the first `max_batches` batches of the train loader, see
    `ics_apps.norms.statistics.recompute_statistics`. So the validation's figures, the choice of the best checkpoint and
    the checkpoints themselves belong to one set of statistics. Batches are as the train loader gives them, augmented
    and, where it shuffles, drawn anew. A model without running statistics is left alone.

    Training is not changed: weights, modes and random numbers are the same to the bit with and without it, as long as
    nothing in training reads the running statistics (`batch` does not; `batch_renorm` and `small_batch: running` do)
    and the dataset keeps no random generator of its own.

    It costs the forward pass of `max_batches` batches: about a third of training on as many.

    Args:
        max_batches: The most batches to run on each rank, >= 1. The error of a mean falls with their root.
        every_n_epochs: Do so in every n-th epoch, and in the last one of `max_epochs` or `max_steps`, >= 1.
        input_key: Where batches are dicts, the key of the model's input. Tensors, and tuples and lists that begin with
            the input, need none. For other batches override `run_model`.

    Attributes:
        report: What was done last, or None.

    Raises:
        ValueError: An argument out of range, batches that need `input_key`, or several train loaders.

    Example:
        >>> RecomputeStatistics(max_batches=0)
        Traceback (most recent call last):
        ...
        ValueError: max_batches is 0; give at least 1.

    Reference: Wu & Johnson 2021 (2105.07576), section 3.
    """

    def __init__(self, max_batches: int = 200, every_n_epochs: int = 1, input_key: str | None = None) -> None:
        super().__init__()
        for name, value in (("max_batches", max_batches), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1.")
        self.max_batches = max_batches
        self.every_n_epochs = every_n_epochs
        self.input_key = input_key
        self.report: StatisticsReport | None = None
        self._done_at = -1  # the step of the last estimate

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget at which step of another fit the last estimate was."""
        self._done_at = -1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate before the figures are taken."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._estimate_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate after an epoch that had no validation at its end; checkpoints are saved after this hook."""
        self._estimate_if_due(trainer, pl_module)

    def run_model(self, pl_module: LightningModule, batch: Any) -> None:
        """Run the model on a batch that is on its device."""
        if isinstance(batch, dict):
            if self.input_key not in batch:
                raise ValueError(
                    f"RecomputeStatistics.input_key is {self.input_key!r}; the train loader's batches are dicts with "
                    f"the keys {', '.join(map(repr, batch))}."
                )
            x = batch[self.input_key]
        else:
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor):
            raise ValueError(
                f"RecomputeStatistics got a {type(x).__name__} where the model's input should be; set input_key, or "
                "override run_model."
            )
        pl_module(x)

    def _estimate_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        due = last or epoch % self.every_n_epochs == 0
        if not due or self._done_at == trainer.global_step:
            return
        self._done_at = trainer.global_step

        def forward(_model: nn.Module, batch: Any) -> None:
            with trainer.precision_plugin.forward_context():
                self.run_model(pl_module, trainer.strategy.batch_to_device(batch))

        limit = int(min(self.max_batches, trainer.num_training_batches))
        with _undisturbed(trainer.train_dataloader) as loader:
            report = recompute_statistics(pl_module, loader, max_batches=limit, forward=forward)
        if self.report is None and report.skipped:
            left = "; ".join(f"{name}: {reason}" for name, reason in report.skipped.items())
            rank_zero_info(f"RecomputeStatistics leaves the statistics of some layers as they are. {left}")
        self.report = report


@contextmanager
def _undisturbed(loader: Any) -> Iterator[Iterable[Any]]:
    """The loader, to be iterated over while an epoch may be running, which goes on as if it had not been."""
    if isinstance(loader, dict | list | tuple):
        raise ValueError(
            f"RecomputeStatistics takes its batches from one train loader, but there are {len(loader)}; call "
            "ics_apps.norms.statistics.recompute_statistics yourself."
        )
    if not isinstance(loader, DataLoader):
        yield loader
        return
    # A loader with persistent workers has one iterator, which a second iteration would set back to its start.
    own = copy.copy(loader)
    own._iterator = None
    given = (loader.generator, getattr(loader.sampler, "generator", None))
    generators = [(generator, generator.get_state()) for generator in given if generator is not None]
    try:
        yield own
    finally:
        for generator, state in generators:
            generator.set_state(state)
