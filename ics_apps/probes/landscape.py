"""How the loss and its gradient change along the gradient: how far the next step can trust it.

Pictures of the loss in random directions are `slices`; curvature at a point is `hessian`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Landscape:
    """What was found at W - e g, for each step size e of a grid; g is the gradient at W.

    Attributes:
        step_sizes: e, `(E,)`.
        loss: L(W).
        gradient_norm: ||g||.
        losses: L(W - e g), `(E,)`; infinite where it is not finite, one step too far.
        gradient_changes: ||g - g(W - e g)||, `(E,)`; NaN where the loss or the gradient there is not finite.
        smoothness: ||g - g(W - e g)|| / ||e g||, `(E,)`; NaN likewise. On a quadratic ||H g|| / ||g|| for every e.
    """

    step_sizes: Float64
    loss: float
    gradient_norm: float
    losses: Float64
    gradient_changes: Float64
    smoothness: Float64

    @property
    def loss_range(self) -> tuple[float, float]:
        """The least and the largest loss on the grid."""
        return float(self.losses.min()), float(self.losses.max())

    @property
    def gradient_range(self) -> tuple[float, float]:
        """The least and the largest change of the gradient on the grid, of those known; NaN if none is."""
        return _extreme(np.min, self.gradient_changes), _extreme(np.max, self.gradient_changes)

    @property
    def beta(self) -> float:
        """The effective beta-smoothness: the largest smoothness on the grid; NaN if none is known."""
        return _extreme(np.max, self.smoothness)


def landscape(objective: Objective, step_sizes: Sequence[float]) -> Landscape:
    """Walk along the gradient of one batch's loss, and measure loss and gradient of the same batch on the way.

    The direction is that of the plain gradient, whatever the optimizer would make of it. The weights are set anew at
    each step size, so that no rounding adds up, and put back afterwards. Sums are float64.

    A change of the gradient below its rounding, about 1e-7 ||g|| in float32 and 2e-3 ||g|| under bfloat16 (autocast
    too), is not seen: smoothness below 1e-7 / e and 2e-3 / e is noise. Give larger steps, or measure in float32.

    Cost: a training step without its optimizer for each step size, and one more. Memory: three copies of the weights
    beside that of the objective.

    Args:
        objective: the loss of the batch, open.
        step_sizes: e, each > 0, one at least.

    Returns:
        The figures.

    Raises:
        ProbeError: the gradient is 0 or not finite; or what `Objective` raises.
        ValueError: no step size, or one that is not above 0.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> with Objective(model, lambda: 2 * model(torch.ones(1, 1)).square().sum()) as objective:
        ...     found = landscape(objective, [0.1, 0.25])  # L = 2 w^2, so g = 4 w and H = 4
        >>> round(found.loss_range[0], 6), round(found.loss_range[1], 6), round(found.beta, 6)
        (0.0, 0.72, 4.0)

    Reference: Santurkar et al. 2018 (1805.11604), section 3.1 and appendix A.2.2.
    """
    sizes = np.array(step_sizes, np.float64)
    if not (sizes.size and np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"step_sizes is {sizes.tolist()}; give one or more finite numbers above 0.")
    loss, gradient = objective.value_and_gradient()
    length = _length(gradient)
    if not 0 < length < math.inf:
        raise ProbeError(
            f"The gradient has length {length}: there is no direction to walk in; measure at other weights."
        )
    start = objective.weights()
    points = [_point(objective, start, gradient, size) for size in sizes.tolist()]
    objective.set_weights(start)
    losses, changes = np.array(points, np.float64).T
    return Landscape(sizes, loss, length, losses, changes, changes / (sizes * length))


def _point(
    objective: Objective, start: Sequence[Tensor], gradient: Sequence[Tensor], size: float
) -> tuple[float, float]:
    """Loss and change of the gradient at one step size."""
    objective.set_weights([weight - size * g for weight, g in zip(start, gradient, strict=True)])
    try:
        loss, moved = objective.value_and_gradient()
    except ProbeError:  # it was defined at the start, so it is not finite here
        return math.inf, math.nan
    change = _length(g - h for g, h in zip(gradient, moved, strict=True))
    return loss, change if math.isfinite(change) else math.nan


def _length(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _extreme(of: Any, values: Float64) -> float:
    known = values[np.isfinite(values)]
    return float(of(known)) if len(known) else math.nan
