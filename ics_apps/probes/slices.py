"""The loss of one batch along one or two directions through the weights, for pictures.

Figures of the landscape along the gradient are `landscape`. A slice hides curvature in all other directions: give the
largest eigenvalue (`spectrum`) beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ics_apps.probes.filters import filters_of
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.selection import kind_of

Float64 = NDArray[np.float64]


def filter_normalised_direction(objective: Objective, seed: int = 0) -> list[Tensor]:
    """A random direction whose filters are as long as those of the weights: d_ij <- d_ij ||w_ij|| / ||d_ij||.

    d is Gaussian. A filter is all that makes one output channel, see `filters_of`. Biases and other vectors, all
    parameters of norms and the lengths that weight norm keeps stay where they are: their direction is 0.
    With it, a net whose filters are c times as long and do the same has the same slice.

    Args:
        objective: the loss, open.
        seed: of a generator of its own.

    Returns:
        One tensor for each of the objective's parameters.

    Raises:
        ProbeError: no weight has filters.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> with Objective(model, lambda: model(torch.ones(1, 3)).sum()) as objective:
        ...     weight, bias = filter_normalised_direction(objective)
        >>> torch.allclose(weight.norm(dim=1), model.weight.norm(dim=1)), bias.tolist()
        (True, [0.0, 0.0])

    Reference: Li et al. 2018 (1712.09913), section 4.
    """
    filters = _filters(objective.model)
    if not any(parameter in filters for parameter in objective.parameters):
        raise ProbeError("The model has no weight with filters: there is no filter-normalised direction.")
    generator = torch.Generator().manual_seed(seed)
    direction = []
    for parameter in objective.parameters:
        # Drawn for all of them, so that a seed means the same whatever is left out.
        d = torch.randn(parameter.shape, generator=generator).to(parameter)
        shape = filters.get(parameter)
        direction.append(torch.zeros_like(d) if shape is None else _normalised(d, parameter, shape))
    return direction


def slice_1d(objective: Objective, direction: Sequence[Tensor], at: Sequence[float]) -> Float64:
    """L(W + a d) for each a: same batch, same dropout masks, the mode that is trained, buffers put back.

    Args:
        objective: the loss, open; the weights are put back.
        direction: d, one tensor a parameter.
        at: positions a; in units of the filters' length if d is filter-normalised.

    Returns:
        The losses, `(A,)`, infinite where they are not finite.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(2.0)
        >>> with Objective(model, lambda: model(torch.ones(1, 1)).square().sum()) as objective:
        ...     slice_1d(objective, [torch.ones(1, 1)], [-2.0, 0.0, 1.0]).tolist()
        [0.0, 4.0, 9.0]

    Reference: Goodfellow et al. 2015 (1412.6544).
    """
    return slice_2d(objective, direction, [torch.zeros_like(d) for d in direction], at, [0.0])[:, 0]


def slice_2d(
    objective: Objective,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    at: Sequence[float],
    beside: Sequence[float],
) -> Float64:
    """L(W + a d + b e) for each a and b.

    Args:
        objective: the loss, open; the weights are put back.
        first: d, one tensor a parameter.
        second: e, likewise.
        at: positions a along d.
        beside: positions b along e.

    Returns:
        The losses, `(A, B)`, infinite where they are not finite.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.fill_(0.0)
        >>> with Objective(model, lambda: model(torch.ones(1, 2)).square().sum()) as objective:
        ...     d, e = [torch.tensor([[1.0, 0.0]])], [torch.tensor([[0.0, 1.0]])]
        ...     slice_2d(objective, d, e, [0.0, 1.0], [0.0, 2.0]).tolist()
        [[0.0, 4.0], [1.0, 9.0]]

    Reference: Li et al. 2018 (1712.09913).
    """
    start = objective.weights()
    losses = np.empty((len(at), len(beside)))
    for row, a in enumerate(at):
        for column, b in enumerate(beside):
            moved = zip(start, first, second, strict=True)
            objective.set_weights([weight + a * d + b * e for weight, d, e in moved])
            losses[row, column] = _value(objective)
    objective.set_weights(start)
    return losses


def _value(objective: Objective) -> float:
    try:
        return objective.value()
    except ProbeError:
        return math.inf


def _filters(model: nn.Module) -> dict[nn.Parameter, tuple[int, int, int, int]]:
    """Of each weight that has filters the shape in which axes 0 and 2 number them."""
    # Also what lies inside a norm: the table of a conditional one is its weights and biases.
    of_norms = {parameter for m in model.modules() if kind_of(m) == "norm" for parameter in m.parameters()}
    return {
        parameter: filters_of(model, name)
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and parameter not in of_norms and not _is_lengths(name, parameter)
    }


def _is_lengths(name: str, parameter: nn.Parameter) -> bool:
    """Whether it holds the filters' lengths beside their directions, as weight norm has it: no filter, but a scale."""
    return name.endswith((".original0", "weight_g")) and parameter.numel() == max(parameter.shape)


def _normalised(d: Tensor, weight: nn.Parameter, shape: tuple[int, int, int, int]) -> Tensor:
    """A direction whose filters are as long as those of the weight."""
    lengths = [torch.linalg.vector_norm(x.detach().reshape(shape), dim=(1, 3), keepdim=True) for x in (weight, d)]
    normalised: Tensor = d.view(shape) * lengths[0] / lengths[1]
    return normalised.view(d.shape)
