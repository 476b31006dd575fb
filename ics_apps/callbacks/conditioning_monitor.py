"""The conditioning of layer inputs while a Trainer fits: schedule and file; the figures are `probes.conditioning`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.probes.conditioning import input_conditioning
from ics_apps.probes.selection import check_max_layers


class ConditioningMonitor(ProbeCallback):
    """Watch how well the inputs of convolutions and linear layers are conditioned.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.ConditioningMonitor
              init_args:
                every_n_steps: 500

    For each layer the eigenvalues of E[h h'] of its input h, over the samples and positions of the batch about to be
    trained on: the condition with a damping of a thousandth of the mean eigenvalue, and the effective rank. Whitened
    inputs have condition 1 and effective rank C.

    It writes `probes/conditioning.csv`, one row a layer, and logs `conditioning/worst`, the largest condition, and
    `conditioning/median`. A figure that is not defined is left empty, see `LayerConditioning`.

    A measurement is one forward pass and its matrices, about one to three training steps (convolutions, a perceptron
    and a transformer of 256 features on one CPU core); at the default of every 500 steps that is below 1 %.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        layers: as in `select_layers`, convolutions and linear layers only; None for all of them.
        max_layers: the most layers, >= 1.
        loss: see `ProbeCallback`.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> ConditioningMonitor(max_layers=0)
        Traceback (most recent call last):
        ...
        ValueError: max_layers is 0; give at least 1.

    Reference: as `ics_apps.probes.conditioning.input_conditioning`.
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conditioning": ("layer", "order", "features", "condition", "effective_rank", "damping")
    }

    def __init__(
        self,
        every_n_steps: int = 500,
        layers: str | Sequence[str] | None = None,
        max_layers: int = 64,
        loss: str | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(every_n_steps, loss, dirpath)
        check_max_layers(max_layers)
        self.layers = layers
        self.max_layers = max_layers

    def measure(self, occasion: Occasion) -> Measured:
        """One row a layer."""
        with occasion.objective() as objective:
            found = input_conditioning(occasion.module, objective.loss, self.layers, self.max_layers)
        rows = [defined(dataclasses.asdict(layer)) for layer in found]
        conditions = sorted(layer.condition for layer in found if not math.isnan(layer.condition))
        if not conditions:
            return Measured({"conditioning": rows})
        scalars = {"conditioning/worst": conditions[-1], "conditioning/median": conditions[len(conditions) // 2]}
        return Measured({"conditioning": rows}, scalars)
