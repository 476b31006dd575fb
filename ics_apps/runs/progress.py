"""One printed line an epoch, for logs and pipes, where a progress bar would leave thousands of lines."""

from __future__ import annotations

import math
import time

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochLines(Callback):
    """Print a line after each epoch with the time it took and the metrics that came out of it.

    Args:
        max_metrics: How many metrics a line shows at most; the rest is in `metrics.csv`.
    """

    def __init__(self, max_metrics: int = 5) -> None:
        self._max_metrics = max_metrics
        self._started = 0.0
        self._printed_epoch = -1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch before, whose metrics are complete now, and start the clock."""
        self._print(trainer, trainer.current_epoch - 1)
        self._started = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self._print(trainer, trainer.current_epoch - 1)

    def _print(self, trainer: Trainer, epoch: int) -> None:
        if not trainer.is_global_zero or epoch < 0 or epoch == self._printed_epoch or not self._started:
            return
        self._printed_epoch = epoch
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        named = sorted(metrics, key=lambda name: (name.count("/"), name))[: self._max_metrics]
        scores = "  ".join(f"{name} {metrics[name]:.4g}" for name in named if not math.isnan(metrics[name]))
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        print(f"epoch {epoch + 1}/{total}  {time.monotonic() - self._started:.1f} s  {scores}", flush=True)  # noqa: T201
