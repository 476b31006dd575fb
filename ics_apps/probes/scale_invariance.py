"""Weights whose length the loss does not see; how far a step turns them is `rotation`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ics_apps.probes.filters import filters_of, owner_of
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.selection import kind_of

# What rounding may change of a loss, relative to it, by the coarsest number format in its graph.
ROUNDING: Final[Mapping[torch.dtype, float]] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 4e-3,
}


@dataclass(frozen=True, slots=True)
class ScaleInvariantWeight:
    """A weight W with L(cW) = L(W) for c > 0.

    Attributes:
        name: its name in the model.
        bias: name of the bias that has to be multiplied by the same c; None if the weight can be scaled alone.
        per_filter: whether each filter (output channel) can be scaled alone (batch and instance norm only).
        norm: its Euclidean length, with the bias if there is one.
        cosine: <gradient, W> / (|gradient| |W|), of both likewise; 0 but for eps and rounding.
        loss_change: the largest |L(cW) - L(W)| seen.
        tolerance: what was allowed.
    """

    name: str
    bias: str | None
    per_filter: bool
    norm: float
    cosine: float
    loss_change: float
    tolerance: float


def scale_invariant_weights(objective: Objective, tolerance: float = 1e-3) -> list[ScaleInvariantWeight]:
    """The weights whose length has no influence on the loss, measured.

    A weight W is one if all hold, where g is its gradient and r what rounding does: Euler's <g, W> = 0, up to
    `(tolerance + r) |g| |W|`; L(cW) = L(W), at c = 1/2 up to `3 |<g, W>| + r |L|`, at c = 2 and 16 up to half of that
    change plus r |L|; and the latter changes are at most a quarter of that by another direction, the numbers of W in
    reverse order. All but r is for the eps of a norm, which makes the loss depend on c as A / c^2: <g, W> is -2A, the
    change 3A at c = 1/2 and at most A above 1. r is 1e-12 in float64, 1e-5 in float32, 1e-3 in float16 and 4e-3 in
    bfloat16; powers of two add none. Under bfloat16, where little but rounding is left of a batch's loss, as in a net
    that has not been trained, one weight in fifty may be misjudged.

    If each filter passes Euler's test alone, the weight is asked once more with c = 1/2 or 2 drawn for each. A bias of
    the same module is scaled along where that changes the loss less, as before group, layer and rms norms, but not
    where the loss does not see it (batch and instance norm) or the weight itself is normalised.

    Candidates are parameters of two axes or more, outside of norms: a gain whose shift is still 0 can be scaled too if
    another norm follows, by chance of its start values. Weights without a gradient are left out, and those of which
    only some filters are invariant. It costs one gradient, one loss, and four to twelve losses for each weight that
    passes Euler's test.

    Args:
        objective: the loss of a batch; its model's norms count as they are, in training or in evaluation mode.
        tolerance: the largest cosine of gradient and weight, > 0.

    Returns:
        One entry a weight, in the order of the model.

    Raises:
        ProbeError: the loss cannot be differentiated.
        ValueError: an argument out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
        >>> x = torch.randn(16, 4)
        >>> with Objective(model, lambda: model(x).square().mean()) as objective:
        ...     [(weight.name, weight.bias, weight.per_filter) for weight in scale_invariant_weights(objective)]
        [('0.weight', '0.bias', False)]

    Reference: van Laarhoven 2017 (1706.05350); the test is ours.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; give a number > 0.")
    gradients, rounding = _gradients(objective)
    value = objective.value()
    ask = functools.partial(_invariance, objective, value=value, tolerance=tolerance, rounding=rounding)
    tensors = zip(objective.parameters, gradients, strict=True)
    parts = {name: _Part(*pair) for name, pair in zip(objective.names, tensors, strict=True)}
    norms = tuple(f"{path}." for path, module in objective.model.named_modules() if kind_of(module) == "norm")
    found = []
    for name, part in parts.items():
        if part.parameter.ndim < 2 or name.startswith(norms):
            continue
        part.shape = filters_of(objective.model, name)
        bias = _bias_name(name)
        beside = parts.get(bias)
        attempts = [[part]]
        if beside is not None and beside.parameter.numel() == part.filters:
            beside.shape = (part.shape[0], 1, part.shape[2], 1)
            attempts.insert(0, [part, beside])
        results = [(result, scaled) for scaled in attempts if (result := ask(scaled)) is not None]
        if results:
            result, scaled = min(results, key=lambda pair: pair[0].loss_change)
            least = (tolerance + rounding) * part.gradient.norm()
            sees_bias = scaled[-1] is beside and bool(beside.gradient.norm() > least)
            found.append(_entry(name, bias, scaled, result) if sees_bias else _entry(name, None, [part], result))
    return found


@dataclass(slots=True, eq=False)
class _Part:
    """A tensor and its gradient, seen as (groups, inputs, outputs of a group, rest) to tell its filters."""

    parameter: nn.Parameter
    gradient: Tensor
    shape: tuple[int, int, int, int] = (1, 1, 1, 1)

    @property
    def filters(self) -> int:
        return self.shape[0] * self.shape[2]

    def sums(self, a: Tensor, b: Tensor) -> Tensor:
        """Of a * b over each filter, in float64."""
        return (a.detach().double() * b.detach().double()).reshape(self.shape).sum((1, 3)).flatten()

    def scaled(self, by: Tensor) -> Tensor:
        """Each filter times its own number; one number is for all."""
        weight = self.parameter.detach()
        by = by.to(weight).expand(self.filters).reshape(self.shape[0], 1, self.shape[2], 1)
        return (weight.reshape(self.shape) * by).reshape(weight.shape)

    def turned(self) -> Tensor:
        """The same numbers in another order: another direction, the same length."""
        return self.parameter.detach().flatten().flip(0).reshape(self.parameter.shape)


@dataclass(frozen=True, slots=True)
class _Result:
    per_filter: bool
    loss_change: float
    tolerance: float


def _products(parts: Sequence[_Part]) -> tuple[Tensor, Tensor, Tensor]:
    """<g, W>, <g, g> and <W, W> of each filter."""
    return (
        torch.stack([part.sums(part.gradient, part.parameter) for part in parts]).sum(0),
        torch.stack([part.sums(part.gradient, part.gradient) for part in parts]).sum(0),
        torch.stack([part.sums(part.parameter, part.parameter) for part in parts]).sum(0),
    )


def _invariance(
    objective: Objective, parts: Sequence[_Part], value: float, tolerance: float, rounding: float
) -> _Result | None:
    dots, gradients, weights = _products(parts)
    size, dot = float((gradients.sum() * weights.sum()).sqrt()), abs(float(dots.sum()))
    if size == 0 or dot > (tolerance + rounding) * size:
        return None
    slack = rounding * abs(value)
    scaled = [[part.scaled(torch.tensor([c])) for part in parts] for c in (0.5, 2.0, 16.0)]
    shorter, *longer, turned = _loss_changes(objective, parts, [*scaled, [part.turned() for part in parts]], value)
    if shorter > 3 * dot + slack or max(longer) > shorter / 2 + slack or turned <= 4 * max(longer):
        return None
    # A filter with hardly a gradient has little but its rounding.
    each = tolerance * (gradients * weights).sqrt() + rounding * size
    per_filter = len(dots) == 1
    if not per_filter and bool((dots.abs() <= each).all()):
        halved = torch.randint(2, dots.shape, generator=torch.Generator().manual_seed(0))
        by = torch.where(halved == 1, 0.5, 2.0)
        contents = [[part.scaled(c) for part in parts] for c in (by, 1 / by)]
        changes = _loss_changes(objective, parts, contents, value)
        per_filter = max(changes) <= 3 * float(dots.abs().sum()) + slack
    return _Result(per_filter, max(shorter, *longer), 3 * dot + slack)


def _loss_changes(
    objective: Objective, parts: Sequence[_Part], contents: Sequence[Sequence[Tensor]], value: float
) -> list[float]:
    """How the loss changes with each of several contents of the parts."""
    kept = [part.parameter.detach().clone() for part in parts]
    changes = []
    for content in contents:
        _fill(parts, content)
        try:
            changes.append(abs(objective.value() - value))
        except ProbeError:  # not finite: it does depend on the length
            changes.append(math.inf)
        finally:
            _fill(parts, kept)
    return changes


def _fill(parts: Sequence[_Part], contents: Sequence[Tensor]) -> None:
    for part, content in zip(parts, contents, strict=True):
        part.parameter.data.copy_(content)


def _entry(name: str, bias: str | None, parts: Sequence[_Part], result: _Result) -> ScaleInvariantWeight:
    dot, gradient, weight = (float(of_filters.sum()) for of_filters in _products(parts))
    cosine = dot / math.sqrt(gradient * weight)
    return ScaleInvariantWeight(
        name, bias, result.per_filter, math.sqrt(weight), cosine, result.loss_change, result.tolerance
    )


def _gradients(objective: Objective) -> tuple[list[Tensor], float]:
    """All gradients, and what rounding may do to the loss."""
    seen: set[torch.dtype] = set()

    def note(x: Tensor) -> Tensor:
        seen.add(x.dtype)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        gradients = objective.gradient()
    seen.update(parameter.dtype for parameter in objective.parameters)
    return gradients, max(rounding for dtype, rounding in ROUNDING.items() if dtype in seen)


def _bias_name(name: str) -> str:
    parts = name.split(".")
    own = parts[parts.index("parametrizations") + 1] if "parametrizations" in parts else parts[-1]
    return f"{owner_of(name)}.{own.replace('weight', 'bias')}".removeprefix(".")
