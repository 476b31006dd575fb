"""Internal covariate shift: how much the gradient of a layer changes when the layers below it take their step.

This is the shift of gradients (Santurkar et al. 2018). The older notion, the drift of a layer's inputs between steps
(Ioffe and Szegedy 2015), is another figure: `input_drift`. Which parameters are a layer is `parameter_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ics_apps.probes.objective import Objective
from ics_apps.probes.parameter_layers import ParameterLayer, choose_layers, parameter_layers
from ics_apps.probes.preserve import ProbeError, Surroundings, preserved
from ics_apps.probes.selection import LayerChoice


@dataclass(frozen=True, slots=True)
class LayerShift:
    """One layer's gradient at the old weights, G, and after the step of the layers below it, G'.

    Attributes:
        layer: its name, see `ParameterLayer`.
        order: its place in forward order, from 0.
        grad_norm: ||G||.
        shift: ||G - G'||, in units of the gradient: compare it within a net only.
        relative_shift: ||G - G'|| / ||G||, >= 0; NaN where G is 0.
        cosine: of the angle between G and G', in [-1, 1]; NaN where one of them is 0.
    """

    layer: str
    order: int
    grad_norm: float
    shift: float
    relative_shift: float
    cosine: float


class ShiftMeter:
    """Measures internal covariate shift of one real step: call `before`, let the optimizers step, call `after`.

    With layers 1..k in forward order, weights W^t before the step and W^{t+1} after it, whatever optimizer made them,

        G_i  = grad_{W_i} L(W_1^t, ..., W_k^t)
        G'_i = grad_{W_i} L(W_1^{t+1}, ..., W_{i-1}^{t+1}, W_i^t, ..., W_k^t)

    on the same batch, with the same dropout masks and buffers; batch norm in training uses the batch's statistics. Only
    the layers below i have moved. The shift of layer i is ||G_i - G'_i||, over all its parameters together; sums are
    float64. That of the first layer is 0 and its cosine 1, since no layer lies below it. It is measured all the same: a
    figure other than 0 is the noise of kernels that add up in no fixed order, or of a loss with randomness of its own.

    The model leaves `before` and `after` as it came, to the bit. Memory: two copies of the weights between the two (W^t
    and G), up to two more inside them. Cost: in `before` two forward passes and a backward pass, in `after` a forward
    pass and a backward pass down to the layer for each layer measured.

    Args:
        model: the model.
        loss: computes the scalar loss of one fixed batch, with its graph.
        layers: which to measure, as in `select_layers`, by the modules that hold the weights; None for all.
        max_layers: the most layers to measure, >= 1; more are thinned evenly over the depth.
        grad_scale: see `Objective`.

    Raises:
        ProbeError: nothing to differentiate, see `Objective`; or, in `before`, no layer with weights is chosen.
        ValueError: in `before`, a choice that matches no module, or `max_layers` < 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer in model:
        ...     _ = layer.weight.data.fill_(1.0)
        >>> meter = ShiftMeter(model, lambda: model(torch.ones(1, 1)).square().sum())
        >>> meter.before()  # L = (w2 w1)^2, so G_2 = 2 w2 w1^2 = 2
        >>> _ = model[0].weight.data.fill_(0.5), model[1].weight.data.fill_(0.0)
        >>> [(row.layer, row.shift, row.cosine) for row in meter.after()]  # G'_2 = 2 * 0.25
        [('0', 0.0, 1.0), ('1', 1.5, 1.0)]

    Reference: Santurkar et al. 2018 (1805.11604), Definition 2.1; the cosine is their Figure 3. The relative form, what
        makes a layer and the order of branches are ours.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[], Tensor],
        *,
        layers: LayerChoice | Sequence[LayerChoice] | None = None,
        max_layers: int = 64,
        grad_scale: float = 1.0,
    ) -> None:
        self.model = model
        self._loss = loss
        self._choice = layers
        self._max_layers = max_layers
        self._grad_scale = grad_scale
        self._kept: _Before | None = None

    def before(self) -> None:
        """Keep the weights, their gradients and all that the forward pass depends on, before the optimizers step."""
        surroundings = Surroundings(self.model)
        with self._objective() as objective:
            layers = parameter_layers(self.model, objective.loss)
            chosen = choose_layers(self.model, layers, self._choice, self._max_layers)
            inputs = [parameter for layer in chosen for parameter in layer.parameters]
            _, found = objective.value_and_parts(inputs)
        gradients = {p: gradient for p, gradient in zip(inputs, found, strict=True) if gradient is not None}
        if not gradients:
            raise ProbeError(
                "The loss depends on no weights of these layers; choose others, or compute it from their output."
            )
        self._kept = _Before(surroundings, [_Step.of(layer, gradients) for layer in layers])

    def after(self) -> list[LayerShift]:
        """Measure with the present weights as W^{t+1}.

        Returns:
            One entry a layer that was chosen and on which the loss depends, in forward order.

        Raises:
            RuntimeError: without a `before`.
        """
        if self._kept is None:
            raise RuntimeError("There is nothing to compare with: call `before` ahead of the step, then `after`, once.")
        kept, self._kept = self._kept, None
        present = Surroundings(self.model)
        kept.surroundings.restore()
        try:
            with self._objective() as objective:
                return _walk(objective, kept.steps)
        finally:
            present.restore()

    def _objective(self) -> Objective:
        return Objective(self.model, self._loss, grad_scale=self._grad_scale)


def covariate_shift(
    model: nn.Module,
    loss: Callable[[], Tensor],
    step: Callable[[], object],
    *,
    layers: LayerChoice | Sequence[LayerChoice] | None = None,
    optimizers: Sequence[Optimizer] = (),
) -> list[LayerShift]:
    """Internal covariate shift of one step that is taken back afterwards: `ShiftMeter` in one call.

    Args:
        model: the model; afterwards it is as it was, to the bit.
        loss: computes the scalar loss of one fixed batch, with its graph.
        step: moves the weights.
        layers: see `ShiftMeter`; all that are chosen are measured.
        optimizers: those that step; their states are put back.

    Returns:
        One entry a layer, in forward order.

    Raises:
        ProbeError: see `ShiftMeter`.
        ValueError: a choice that matches no module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> x = torch.ones(2, 4)
        >>> def loss() -> Tensor:
        ...     return model(x).square().mean()
        >>> def step() -> None:
        ...     optimizer.zero_grad()
        ...     loss().backward()
        ...     optimizer.step()
        >>> [row.layer for row in covariate_shift(model, loss, step, optimizers=[optimizer])]
        ['0', '2']

    Reference: as `ShiftMeter`.
    """
    everything = max(sum(1 for _ in model.parameters()), 1)
    with preserved(model, optimizers):
        meter = ShiftMeter(model, loss, layers=layers, max_layers=everything)
        meter.before()
        step()
        return meter.after()


@dataclass(frozen=True, slots=True)
class _Step:
    """A layer, those of its weights that the model does not hold now, and the gradients G that are to be compared."""

    layer: ParameterLayer
    other: list[Tensor]
    gradients: dict[nn.Parameter, Tensor]

    @classmethod
    def of(cls, layer: ParameterLayer, gradients: dict[nn.Parameter, Tensor]) -> _Step:
        """The layer before its step."""
        own = {parameter: gradients[parameter] for parameter in layer.parameters if parameter in gradients}
        return cls(layer, [parameter.detach().clone() for parameter in layer.parameters], own)

    def swap(self) -> None:
        """Give the model the other weights and keep its present ones."""
        for parameter, other in zip(self.layer.parameters, self.other, strict=True):
            present = parameter.detach().clone()
            parameter.data.copy_(other)
            other.copy_(present)


@dataclass(frozen=True, slots=True)
class _Before:
    surroundings: Surroundings
    steps: list[_Step]


def _walk(objective: Objective, steps: Sequence[_Step]) -> list[LayerShift]:
    """Back to W^t, then upward: measure a layer, and let it take its step."""
    rows = []
    for step in steps:
        step.swap()
    for step in steps:
        if step.gradients:
            _, moved = objective.value_and_parts(list(step.gradients))
            rows.append(_compared(step.layer, list(step.gradients.values()), moved))
        step.swap()
    return rows


def _compared(layer: ParameterLayer, old: Sequence[Tensor], new: Sequence[Tensor | None]) -> LayerShift:
    # float64: squares summed over millions of weights, and differences of nearly equal gradients.
    squared_old = squared_new = product = squared_gap = 0.0
    for before, after in zip(old, new, strict=True):
        g = _flat(before)
        h = torch.zeros_like(g) if after is None else _flat(after)
        squared_old += float(g @ g)
        squared_new += float(h @ h)
        product += float(g @ h)
        squared_gap += float((g - h) @ (g - h))
    norm, shift, sizes = math.sqrt(squared_old), math.sqrt(squared_gap), math.sqrt(squared_old * squared_new)
    return LayerShift(
        layer=layer.name,
        order=layer.order,
        grad_norm=norm,
        shift=shift,
        relative_shift=shift / norm if norm else math.nan,
        cosine=max(-1.0, min(1.0, product / sizes)) if sizes else math.nan,
    )


def _flat(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense.double().flatten()
