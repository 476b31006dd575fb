"""Internal covariate shift while a Trainer fits: schedule and file; the figures are `probes.covariate_shift`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.probes.covariate_shift import LayerShift, ShiftMeter
from ics_apps.probes.selection import check_max_layers


class ICSMonitor(ProbeCallback):
    """Watch internal covariate shift: how a layer's gradient changes when the layers below it take their step.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.ICSMonitor
              init_args:
                every_n_steps: 1500

    The shift of gradients as Santurkar et al. define it, see `ics_apps.probes.covariate_shift.ShiftMeter`: each layer's
    gradient on the batch about to be trained on, against the same gradient once the real step has moved the layers
    below, with momentum, weight decay, clipping and learning rate as they are. The drift of a layer's inputs is
    `InputDriftMonitor`. Under gradient accumulation the first micro-batch is measured, across the real step. With
    optimizers that step by hand the step is all that one `training_step` does. Training goes on from the new weights,
    unchanged to the bit.

    It writes `probes/ics.csv`, one row a layer, with the step count before the step, and logs `ics/median_cosine` and
    `ics/median_relative_shift`, the medians over the layers above the first. Compare these between nets: `shift` and
    `grad_norm` depend on the scale of the gradients. A figure of a layer without a gradient is left empty.

    Each measured layer costs a forward pass and part of a backward pass: k layers cost 0.75 k to k training steps
    (convolutions and a transformer on one CPU core); at the default of every 1500 steps that is about 1.4 % for 20
    layers and 4.3 % for 64. It holds two copies of the weights from the beginning of the step to its end, and up to two
    more while it measures.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        layers: names, patterns, classes or kinds as in `select_layers`, of modules that hold weights; None for all.
            Weights of norms are part of the layer before.
        max_layers: the most layers, >= 1; more are thinned evenly over the depth.
        loss: see `ProbeCallback`.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> ICSMonitor(max_layers=0)
        Traceback (most recent call last):
        ...
        ValueError: max_layers is 0; give at least 1.

    Reference: Santurkar et al. 2018 (1805.11604), Definition 2.1.
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ics": tuple(column.name for column in dataclasses.fields(LayerShift))
    }

    def __init__(
        self,
        every_n_steps: int = 1500,
        layers: str | Sequence[str] | None = None,
        max_layers: int = 64,
        loss: str | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(every_n_steps, loss, dirpath)
        check_max_layers(max_layers)
        self.layers = layers
        self.max_layers = max_layers
        self._begun: tuple[int, ShiftMeter] | None = None  # until the step that it measures is done

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; a step that another fit left unfinished is forgotten."""
        super().on_train_start(trainer, pl_module)
        self._begun = None

    def measure(self, occasion: Occasion) -> None:
        """Keep what the step will be compared with."""
        meter = ShiftMeter(
            occasion.module,
            occasion.loss,
            layers=self.layers,
            max_layers=self.max_layers,
            grad_scale=occasion.grad_scale,
        )
        meter.before()
        self._begun = occasion.trainer.global_step, meter

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure once the optimizers have stepped."""
        if self._begun is None or trainer.global_step == self._begun[0]:
            return
        (step, meter), self._begun = self._begun, None
        self._attempt(trainer, lambda: _measured(meter.after()), step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took; let go of a step that was not finished."""
        super().on_train_end(trainer, pl_module)
        self._begun = None


def _measured(found: Sequence[LayerShift]) -> Measured:
    rows = [defined(dataclasses.asdict(layer)) for layer in found]
    scalars = {
        f"ics/median_{name}": statistics.median(known)
        for name in ("cosine", "relative_shift")
        if (known := [row[name] for row in rows if row["order"] and name in row])
    }
    return Measured({"ics": rows}, scalars)
