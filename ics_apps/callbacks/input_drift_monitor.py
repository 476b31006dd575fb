"""The drift of layer inputs while a Trainer fits: schedule, reference batch, file; figures are `probes.input_drift`."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.callbacks.training_loss import training_loss
from ics_apps.probes.input_drift import InputDrift, LayerDrift


class InputDriftMonitor(ProbeCallback):
    """Watch how far the distribution of each layer's input drifts, on one reference batch.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.InputDriftMonitor
              init_args:
                every_n_steps: 100

    The drift that batch norm was invented against, of distributions; the shift of gradients is `ICSMonitor`. The batch
    is the first one that is measured in a fit, kept as it was on its device, so that only the net makes a difference,
    see `ics_apps.probes.input_drift.InputDrift`. It runs through the training loss in training mode: batch norm uses
    the statistics of the batch, dropout repeats its masks, running statistics are put back.

    The statistics of the first and of the last measurement are saved in checkpoints, the batch is not. A resumed run
    takes the first batch that it measures as its reference, and goes on comparing with the saved statistics: from there
    on `reference_*` contain the difference between two batches beside the drift, and so does its first `drift_*`.

    It writes `probes/input_drift.csv`, one row a layer, and logs the medians over the layers `input_drift/drift_w1` and
    `input_drift/reference_w1`. Distances are empty at the first measurement.

    A measurement is one forward pass and the sorting of what was read, 0.7 to 1 training steps for nets of 20 layers at
    25 ms a step, and less for larger ones; at the default of every 100 steps that is at most 1 %. It holds one batch,
    and a second one while it measures.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        layers: names, patterns, classes or kinds as in `select_layers`; None for convolutions, linear, recurrent and
            activation layers.
        max_layers: the most layers, >= 1.
        sample_size: the most values read of one input, >= 64.
        loss: see `ProbeCallback`.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> InputDriftMonitor(sample_size=8)
        Traceback (most recent call last):
        ...
        ValueError: sample_size is 8; give at least 64, as many as there are quantiles.

    Reference: Ioffe & Szegedy 2015 (1502.03167), Figure 1; a fixed batch and the distances are ours.
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input_drift": tuple(column.name for column in dataclasses.fields(LayerDrift))
    }

    def __init__(
        self,
        every_n_steps: int = 100,
        layers: str | Sequence[str] | None = None,
        max_layers: int = 64,
        sample_size: int = 4096,
        loss: str | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(every_n_steps, loss, dirpath)
        self.layers = layers
        self.max_layers = max_layers
        self.sample_size = sample_size
        self._drift = InputDrift(layers, max_layers, sample_size)
        self._reference: tuple[Any, int] | None = None  # a batch and its number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; take another reference batch, and in a new run new statistics."""
        super().on_train_start(trainer, pl_module)
        self._reference = None
        if trainer.global_step == 0:
            self._drift = InputDrift(self.layers, self.max_layers, self.sample_size)

    def measure(self, occasion: Occasion) -> Measured:
        """One row a layer."""
        if self._reference is None:
            # A copy: a training step may write into its batch.
            self._reference = copy.deepcopy(occasion.batch), occasion.batch_idx
        batch, batch_idx = self._reference
        loss = training_loss(occasion.trainer, occasion.module, batch, batch_idx, self.loss)
        return _measured(self._drift.measure(occasion.module, loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took; let go of the batch."""
        super().on_train_end(trainer, pl_module)
        self._reference = None

    def state_dict(self) -> dict[str, Any]:
        """When the last measurement was, and the statistics; loads under `weights_only=True`."""
        return {**super().state_dict(), "drift": self._drift.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._drift.load_state_dict(state_dict["drift"])


def _measured(found: Sequence[LayerDrift]) -> Measured:
    rows = [defined(dataclasses.asdict(layer)) for layer in found]
    scalars = {
        f"input_drift/{name}": statistics.median(known)
        for name in ("drift_w1", "reference_w1")
        if (known := [row[name] for row in rows if name in row])
    }
    return Measured({"input_drift": rows}, scalars)
