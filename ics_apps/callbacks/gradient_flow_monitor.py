"""Gradient flow while a Trainer fits: schedule and file; the figures are `probes.gradient_flow`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from ics_apps.callbacks.loss_scale import loss_scale
from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.probes.gradient_flow import GradientFlow, LayerFlow


class GradientFlowMonitor(ProbeCallback):
    """Watch the norm of each layer's gradient and how much of it is signal.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.GradientFlowMonitor
              init_args:
                every_n_steps: 100

    At every `every_n_steps`-th step it reads the gradients that the optimizers are about to take, before they are
    clipped and without a scaler's factor, over `window` batches with a step in a row: all steps in which an optimizer
    owns a layer count for that layer. No pass is added. See `ics_apps.probes.gradient_flow`: `grad_norm` is the root
    mean square over the window, `snr` the ratio of signal to noise of one step's gradient; what the weights move in
    the window counts as noise too. In a process group these are gradients of the whole batch.

    It writes `probes/gradient_flow.csv`, one row a layer that holds parameters, with the step count at the beginning of
    the window, and logs `gradient_flow/median_snr` and `gradient_flow/smallest_to_largest_norm`. A window that the end
    of training cuts off is not written.

    A window of 8 costs 0.06 (U-Net) to 0.6 training steps (small linear layers) on one CPU core; at the default of
    every 100 steps that is 0.06 % to 0.6 %. It holds up to 2 x 4096 numbers for each parameter while a window is open.

    Args:
        every_n_steps: optimizer steps between two windows, >= `window`.
        window: batches with a step, >= 2.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> GradientFlowMonitor(window=1)
        Traceback (most recent call last):
        ...
        ValueError: window is 1; give at least 2, as noise shows between steps.

    Reference: ours.
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gradient_flow": tuple(column.name for column in dataclasses.fields(LayerFlow))
    }

    def __init__(self, every_n_steps: int = 100, window: int = 8, dirpath: str | Path | None = None) -> None:
        super().__init__(every_n_steps, dirpath=dirpath)
        if window < 2:
            raise ValueError(f"window is {window}; give at least 2, as noise shows between steps.")
        if every_n_steps < window:
            raise ValueError(f"every_n_steps is {every_n_steps}; give at least the window, {window}.")
        self.window = window
        self._window: _Window | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; a window that another fit left open is forgotten."""
        super().on_train_start(trainer, pl_module)
        self._window = None

    def measure(self, occasion: Occasion) -> None:
        """Nothing: the gradients come with the steps."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open a window if it is due."""
        if self._window is None and self._is_due(trainer.global_step):
            self._window = _Window(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the gradients, if a window is open."""
        if self._window is not None and not self._failed:
            window = self._window
            # Lightning unscales before this hook, but for optimizers that do it in their step.
            by_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
            scale = loss_scale(trainer) if by_itself else 1.0
            self._attempt(trainer, lambda: window.read(pl_module, optimizer, scale))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch with a step; close the window after the last one."""
        if self._window is None or not self._window.is_full(trainer.global_step, self.window):
            return
        window, self._window = self._window, None
        if not self._failed:
            self._attempt(trainer, window.measured, window.begin)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took; let go of a window that is open, which training that goes on later begins again."""
        super().on_train_end(trainer, pl_module)
        self._turn = self.state_dict()["turn"]
        self._window = None

    def state_dict(self) -> dict[str, Any]:
        """When the last window was; one that is open is begun again by a run that is resumed."""
        state = super().state_dict()
        return {**state, "turn": self._turn - 1} if self._window is not None else state


class _Window:
    """The gradients of some batches in a row, by the optimizer that takes them.

    Args:
        begin: optimizer steps done before.
    """

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self._flows: dict[int, GradientFlow] = {}
        self._step = begin
        self._batches = 0

    def read(self, model: nn.Module, optimizer: Optimizer, scale: float) -> None:
        if id(optimizer) not in self._flows:
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self._flows[id(optimizer)] = GradientFlow(model, own, turn=self.begin)
        self._flows[id(optimizer)].add(scale=scale)

    def is_full(self, step: int, batches: int) -> bool:
        """Whether this was the last batch; called at the end of each."""
        self._batches += step > self._step
        self._step = step
        return self._batches == batches

    def measured(self) -> Measured:
        layers = sorted((layer for flow in self._flows.values() for layer in flow.layers()), key=lambda x: x.order)
        rows = [defined(dataclasses.asdict(layer)) for layer in layers]
        ratios = [row["snr"] for row in rows if "snr" in row]
        norms = [row["grad_norm"] for row in rows if "grad_norm" in row]
        scalars = {"gradient_flow/median_snr": statistics.median(ratios)} if ratios else {}
        if norms and max(norms) > 0:
            scalars["gradient_flow/smallest_to_largest_norm"] = min(norms) / max(norms)
        return Measured({"gradient_flow": rows}, scalars)
