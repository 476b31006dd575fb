"""The loss along the gradient while a Trainer fits: schedule and file; the figures are `probes.landscape`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.probes.landscape import Landscape, landscape

# From 1/2 to 4 learning rates, evenly in the logarithm, as Santurkar et al. walk with their VGG.
LR_MULTIPLES: Final = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)


class LandscapeMonitor(ProbeCallback):
    """Watch how far the gradient can be trusted: loss and gradient along it, and effective smoothness.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.LandscapeMonitor
              init_args:
                every_n_steps: 250

    At W - e g, with g the plain gradient of the batch about to be trained on and e some multiples of the learning rate,
    on the same batch: the loss, how far the gradient there is from g, and the largest ratio of that change to the way
    gone, the effective beta-smoothness. The direction is that of plain gradient descent whatever the optimizer, as in
    Santurkar et al.: with momentum or Adam the learning rate is but a scale. The rate is the largest of the optimizers.

    It writes `probes/landscape.csv`, one row a step size, the first (0) being W itself, and logs `landscape/loss_range`
    (largest less least loss), `landscape/gradient_range` likewise, and `landscape/beta`. Where a step
    leads too far the loss is written as inf and what is not known of the gradient is left empty; loggers get finite
    figures only. With small rates under bfloat16 the smoothness is rounding, see `landscape`.

    A measurement costs a training step for each multiple and one more, 8 by default; every 250 steps that is 3.2 %. It
    holds two copies of the weights while it measures.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        lr_multiples: e / learning rate, each > 0.
        loss: see `ProbeCallback`.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> LandscapeMonitor(lr_multiples=[0.0, 1.0])
        Traceback (most recent call last):
        ...
        ValueError: lr_multiples is [0.0, 1.0]; give one or more finite numbers above 0.

    Reference: Santurkar et al. 2018 (1805.11604), section 3.1 and appendix A.2.2.
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "landscape": ("lr_multiple", "step_size", "loss", "gradient_change", "smoothness")
    }

    def __init__(
        self,
        every_n_steps: int = 250,
        lr_multiples: Sequence[float] = LR_MULTIPLES,
        loss: str | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(every_n_steps, loss, dirpath)
        if not lr_multiples or not all(0 < multiple < math.inf for multiple in lr_multiples):
            raise ValueError(f"lr_multiples is {list(lr_multiples)}; give one or more finite numbers above 0.")
        self.lr_multiples = tuple(lr_multiples)

    def measure(self, occasion: Occasion) -> Measured | None:
        """One row a step size; nothing where the learning rate is 0, and with it the step."""
        lr = occasion.largest_lr
        if lr <= 0:  # a warm-up that begins at 0
            return None
        with occasion.objective() as objective:
            found = landscape(objective, [multiple * lr for multiple in self.lr_multiples])
        ranges = {"loss_range": found.loss_range, "gradient_range": found.gradient_range}
        scalars = {f"landscape/{name}": high - low for name, (low, high) in ranges.items()}
        scalars["landscape/beta"] = found.beta
        known = {name: value for name, value in scalars.items() if math.isfinite(value)}
        return Measured({"landscape": _rows(found, self.lr_multiples)}, known)


def _rows(found: Landscape, lr_multiples: Sequence[float]) -> list[dict[str, Any]]:
    points = zip(
        lr_multiples,
        found.step_sizes.tolist(),
        found.losses.tolist(),
        found.gradient_changes.tolist(),
        found.smoothness.tolist(),
        strict=True,
    )
    columns = LandscapeMonitor.tables["landscape"]
    start = {"lr_multiple": 0.0, "step_size": 0.0, "loss": found.loss, "gradient_change": 0.0}
    return [start, *(defined(dict(zip(columns, point, strict=True))) for point in points)]
