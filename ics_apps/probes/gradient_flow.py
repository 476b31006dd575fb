"""How large each layer's gradient is, and how much of it is signal: over steps, or over batches.

Parameters are grouped by the module that owns them; layers in the order of a forward pass are in `parameter_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from ics_apps.probes.activations.sampling import locate, read
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.selection import plain_name

SAMPLE: Final = 4096  # entries of a parameter's gradient that are read for the signal-to-noise ratio


@dataclass(frozen=True, slots=True)
class LayerFlow:
    """The gradients of one module's own parameters.

    Attributes:
        layer: name of the module.
        order: its place in the model, from 0.
        grad_norm: root of the mean of |g|^2 over the gradients seen, exact; NaN if there is none.
        snr: |E g|^2 / E|g - E g|^2, of a sample of the entries; NaN for fewer than two gradients, or without noise.
    """

    layer: str
    order: int
    grad_norm: float
    snr: float


def signal_to_noise(gradients: Sequence[Tensor]) -> float:
    """The signal-to-noise ratio of one gradient, from n of them.

    With their mean m and s = sum over the entries of the variance between them (n - 1 in its denominator), it is
    (|m|^2 - s / n) / s: the power of the expected gradient over that of one gradient's noise. Numerator and denominator
    have no bias; so it is a little below 0 half of the time where there is no signal. The number of gradients does not
    change what it tells; with batches k times as large it is k times as large, and 1 at the gradient noise scale.

    Args:
        gradients: n tensors of one shape, n >= 2.

    Returns:
        The ratio; NaN if the gradients are all the same.

    Raises:
        ValueError: fewer than two gradients.

    Example:
        >>> signal_to_noise([torch.tensor([3.0, 1.0]), torch.tensor([3.0, -1.0])])
        4.0

    Reference: McCandlish et al. 2018 (1812.06162), whose simple noise scale is batch size / this ratio.
    """
    if len(gradients) < 2:
        raise ValueError(f"Got {len(gradients)} gradients; noise shows between at least 2.")
    stacked = torch.stack([gradient.detach().double().flatten() for gradient in gradients])
    mean, noise = float(stacked.mean(0).square().sum()), float(stacked.var(0).sum())
    return _ratio(mean, noise, len(gradients))


def gradient_flow(model: nn.Module, losses: Iterable[Callable[[], Tensor]], sample: int = SAMPLE) -> list[LayerFlow]:
    """Norm and signal-to-noise ratio of each layer's gradient at the present weights, over several batches.

    Args:
        model: the model; it is left as it came, to the bit.
        losses: for each batch, the function that computes its loss.
        sample: see `GradientFlow`.

    Returns:
        One entry a layer, in the order of the model.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> xs = (torch.ones(1, 1), 3 * torch.ones(1, 1))
        >>> [flow] = gradient_flow(model, [lambda x=x: model(x).sum() for x in xs])
        >>> flow.layer, round(flow.grad_norm, 4), flow.snr
        ('Linear', 2.2361, 1.5)

    Reference: see `signal_to_noise`.
    """
    flow = GradientFlow(model, sample=sample)
    for loss in losses:
        with Objective(model, loss) as objective:
            flow.add(dict(zip(objective.parameters, objective.gradient(), strict=True)))
    return flow.layers()


class GradientFlow:
    """Gradients of a model's layers, taken in one by one; nothing waits for the device before `layers`.

    Norms are exact. For the ratio of `signal_to_noise`, mean and variance are kept (Welford's way, in float32) of at
    most `sample` entries of each parameter, at a fixed stride; each parameter counts with all its entries. A gradient
    of which any entry is not finite is left out, as a scaler skips its step.

    Args:
        model: the model.
        parameters: those whose gradients will be added; None for all that require one.
        sample: the most entries of a parameter, >= 1.
        turn: another one samples other entries.

    Raises:
        ProbeError: none of the model's parameters is among them.
        ValueError: an argument out of range.

    Reference: Welford 1962; see `signal_to_noise`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[nn.Parameter] | None = None,
        *,
        sample: int = SAMPLE,
        turn: int = 0,
    ) -> None:
        if sample < 1:
            raise ValueError(f"sample is {sample}; give at least 1.")
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        self._layers = [
            (name, order, own)
            for order, (name, held) in enumerate(_layers_of(model).items())
            if (own := [p for p in held if p.requires_grad and (wanted is None or id(p) in wanted)])
        ]
        if not self._layers:
            raise ProbeError("No parameter of the model requires a gradient: unfreeze the part to be measured.")
        self.added = 0
        self._parameters = [parameter for _, _, own in self._layers for parameter in own]
        self._sample = sample
        self._turn = turn
        self._counts = [locate(parameter, sample).count for parameter in self._parameters]
        self._device = self._parameters[0].device
        size = sum(self._counts)
        self._number = torch.zeros((), device=self._device)
        self._mean = torch.zeros(size, device=self._device)
        self._spread = torch.zeros(size, device=self._device)
        self._squares = torch.zeros(len(self._parameters), device=self._device)

    def add(self, gradients: Mapping[nn.Parameter, Tensor] | None = None, scale: float = 1.0) -> None:
        """Take in one gradient.

        Args:
            gradients: of each parameter; None for what is in `.grad`. A missing one is 0.
            scale: what they were multiplied by.
        """
        self.added += 1
        found = [p.grad if gradients is None else gradients.get(p) for p in self._parameters]
        norms = torch.zeros_like(self._squares)
        sampled = []
        dense = [gradient.detach().to_dense() if gradient is not None else None for gradient in found]
        present = [place for place, gradient in enumerate(dense) if gradient is not None]
        if present:
            own = [gradient for gradient in dense if gradient is not None]
            # Sixteen bits would round the norm, and a norm must not be narrower than its input.
            dtype = None if any(gradient.dtype == torch.float64 for gradient in own) else torch.float32
            lengths = torch._foreach_norm(own, dtype=dtype)
            norms[present] = torch.stack([length.to(norms) for length in lengths]) / scale
        for gradient, count in zip(dense, self._counts, strict=True):
            if gradient is None:
                sampled.append(self._mean.new_zeros(count))
            else:
                entries = read(gradient, locate(gradient, self._sample, self._turn))
                sampled.append(entries.to(self._device, torch.float32))
        values = torch.cat(sampled) / scale
        finite = norms.isfinite().all()
        self._number += finite
        self._squares += torch.where(finite, norms.square(), 0)
        change = torch.where(finite, values - self._mean, 0)
        self._mean += change / self._number.clamp(min=1)
        self._spread += change * torch.where(finite, values - self._mean, 0)

    def layers(self) -> list[LayerFlow]:
        """What was seen so far, one entry a layer, in the order of the model."""
        packed = torch.cat([self._number[None], self._squares, self._mean, self._spread]).double().cpu().numpy()
        number, (squares, mean, spread) = (
            int(packed[0]),
            np.split(packed[1:], [len(self._squares), len(self._squares) + len(self._mean)]),
        )
        # Each sampled entry stands for several.
        weights = [p.numel() / max(count, 1) for p, count in zip(self._parameters, self._counts, strict=True)]
        ends = np.cumsum(self._counts)[:-1]
        signals = [w * float((part**2).sum()) for w, part in zip(weights, np.split(mean, ends), strict=True)]
        noises = [w * float(part.sum()) for w, part in zip(weights, np.split(spread, ends), strict=True)]
        flows, start = [], 0
        for name, order, own in self._layers:
            place = slice(start, start + len(own))
            start = place.stop
            grad_norm = math.sqrt(float(squares[place].sum()) / number) if number else math.nan
            noise = sum(noises[place]) / (number - 1) if number > 1 else math.nan
            flows.append(LayerFlow(name, order, grad_norm, _ratio(sum(signals[place]), noise, number)))
        return flows


def _ratio(mean: float, noise: float, number: int) -> float:
    """The ratio, of |m|^2 and s."""
    return (mean - noise / number) / noise if noise > 0 else math.nan


def _layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each module that owns some, a tied one at its first owner."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        # A parametrization shapes the weight of the module that has it.
        owner = parts[: parts.index("parametrizations")] if "parametrizations" in parts else parts[:-1]
        layers.setdefault(plain_name(".".join(owner)) or type(model).__name__, []).append(parameter)
    return layers
