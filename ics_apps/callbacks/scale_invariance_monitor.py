"""Scale-invariant weights while a Trainer fits: schedule, file; figures: `probes.scale_invariance`, `rotation`."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.probes.rotation import Rotation, StepRule, angle, describe_weight_decay
from ics_apps.probes.scale_invariance import ScaleInvariantWeight, scale_invariant_weights


class ScaleInvarianceMonitor(ProbeCallback):
    """Watch the weights whose length the loss does not see: how far a step turns them, and what weight decay does.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.ScaleInvarianceMonitor
              init_args:
                every_n_steps: 500

    Which weights these are is measured on the batch about to be trained on, see `probes.scale_invariance`, at the first
    measurement and again at the fourth, sixteenth and so on; a weight behind a gain of zero shows only once that
    has moved, and one that no optimizer moves is left out. Every measurement keeps them before the optimizer's step and
    compares after it, with momentum, clipping and learning rate as they are. Under gradient accumulation that is the
    real step; with optimizers that step by hand it is all that one `training_step` does.

    It writes `probes/scale_invariance.csv`, one row a weight, with the step count before the step. The rotation that is
    expected is empty where it is not known, see `StepRule`. It logs the medians over the weights,
    `scale_invariance/rotation` and `scale_invariance/expected_rotation`, and says once what weight decay does.

    Finding the weights costs about 2.5 training steps for each that there is (U-Net, ResNet-18, linear layers; one CPU
    core), a later measurement 0.03 to 0.7. At the default of every 500 steps, with 20 such weights, that is 4.5 % of a
    run of 1,000 steps, 1.4 % of 10,000. It holds a copy of these weights from the beginning of a measured step to its
    end.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        loss: see `ProbeCallback`.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> ScaleInvarianceMonitor(every_n_steps=0)
        Traceback (most recent call last):
        ...
        ValueError: every_n_steps is 0; give at least 1.

    Reference: van Laarhoven 2017 (1706.05350); Kosson et al. 2023 (2305.17212).
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scale_invariance": ("layer", "norm", "effective_lr", "rotation", "expected_rotation", "weight_decay")
    }

    def __init__(self, every_n_steps: int = 500, loss: str | None = None, dirpath: str | Path | None = None) -> None:
        super().__init__(every_n_steps, loss, dirpath)
        self._weights: list[ScaleInvariantWeight] = []
        self._asked = 0  # measurements in this fit
        self._next = 1  # the one that looks for the weights
        self._kept: tuple[int, list[_Kept]] | None = None  # until the step that is measured is done
        self._is_said = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; what is known of another fit's model is forgotten."""
        super().on_train_start(trainer, pl_module)
        self._kept, self._is_said, self._asked, self._next = None, False, 0, 1

    def measure(self, occasion: Occasion) -> None:
        """Find the weights if it is time to; keep them as they are before the step."""
        self._asked += 1
        if self._asked == self._next:
            self._next *= 4
            with occasion.objective() as objective:
                self._weights = scale_invariant_weights(objective)
        kept = [_Kept.of(weight, occasion.module, occasion.trainer) for weight in self._weights]
        self._kept = occasion.trainer.global_step, [weight for weight in kept if weight is not None]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure once the optimizers have stepped."""
        if self._kept is None or trainer.global_step == self._kept[0]:
            return
        (step, kept), self._kept = self._kept, None
        self._attempt(trainer, lambda: self._measured(kept), step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took; let go of a step that was not finished."""
        super().on_train_end(trainer, pl_module)
        self._kept = None

    def _measured(self, kept: Sequence[_Kept]) -> Measured:
        rotations = [weight.rotation() for weight in kept]
        if not self._is_said:
            rank_zero_info(f"{self._name}: {describe_weight_decay(rotations)}")
            self._is_said = True
        rows = [defined(dataclasses.asdict(rotation)) for rotation in rotations]
        scalars = {
            f"scale_invariance/{name}": statistics.median(known)
            for name in ("rotation", "expected_rotation")
            if (known := [row[name] for row in rows if name in row])
        }
        return Measured({"scale_invariance": rows}, scalars)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A scale-invariant weight before the step, with the bias that is scaled along.

    Attributes:
        found: what is known of it.
        parameters: the weight, and the bias if there is one.
        before: copies of them.
        rule: how the optimizer moves it at this step.
    """

    found: ScaleInvariantWeight
    parameters: list[nn.Parameter]
    before: list[Tensor]
    rule: StepRule

    @classmethod
    def of(cls, found: ScaleInvariantWeight, module: nn.Module, trainer: Trainer) -> _Kept | None:
        names = [found.name] if found.bias is None else [found.name, found.bias]
        parameters = [module.get_parameter(name) for name in names]
        rule, *others = [_rule(parameter, trainer) for parameter in parameters]
        if rule is None:
            return None
        if any(other != rule for other in others):
            # What is scaled together but moved differently has no known equilibrium.
            rule = StepRule(rule.lr, rule.weight_decay, rule.power)
        return cls(found, parameters, [parameter.detach().clone() for parameter in parameters], rule)

    def rotation(self) -> Rotation:
        norm = math.hypot(*(float(piece.double().norm()) for piece in self.before))
        return Rotation(
            self.found.name,
            norm,
            self.rule.effective_lr(norm),
            angle(self.before, self.parameters),
            self.rule.equilibrium_rotation,
            self.rule.weight_decay,
            self.rule.equilibrium_steps,
        )


def _rule(parameter: nn.Parameter, trainer: Trainer) -> StepRule | None:
    for optimizer in trainer.optimizers:
        if any(parameter is own for group in optimizer.param_groups for own in group["params"]):
            return StepRule.of(optimizer, parameter)
    return None
