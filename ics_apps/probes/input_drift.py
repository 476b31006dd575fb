"""How far the distribution of each layer's input drifts while a net trains, on one fixed batch.

This is the older notion of internal covariate shift, of distributions (Ioffe and Szegedy 2015); it says nothing of
gradients, see `covariate_shift` for those. Drift of outputs on whatever batch is trained on is in `activations`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from ics_apps.probes.activations.columns import Key
from ics_apps.probes.activations.drift import History
from ics_apps.probes.activations.moments import NO_BOUNDS, describe
from ics_apps.probes.activations.sampling import first_tensor, locate, read
from ics_apps.probes.preserve import ProbeError, Surroundings
from ics_apps.probes.selection import Layer, LayerChoice, check_max_layers, kind_of, select_layers

_FIGURES: Final = ("mean", "std", "q15", "q50", "q85")


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One layer's input at one measurement; NaN where it is not defined (distances: at the first measurement).

    Attributes:
        layer: its names, joined by `+`.
        order: place in the order of the first calls, from 0.
        mean: of the values read, in their units.
        std: biased.
        q15: 15 % quantile.
        q50: median.
        q85: 85 % quantile.
        drift_kl: symmetrised Gaussian divergence from the measurement before, in nats.
        drift_w1: Wasserstein-1 distance from it, in its standard deviations.
        drift_mean: gap of the means, in its standard deviations.
        reference_kl: the same three from the first measurement.
        reference_w1: see above.
        reference_mean: see above.
    """

    layer: str
    order: int
    mean: float
    std: float
    q15: float
    q50: float
    q85: float
    drift_kl: float
    drift_w1: float
    drift_mean: float
    reference_kl: float
    reference_w1: float
    reference_mean: float


class InputDrift:
    """Measures the inputs of layers and remembers the first measurement and the last one.

    At each measurement the forward pass has the same random numbers, and the same at most `sample_size` evenly spaced
    values of each input are read. So on the same batch nothing but the weights makes a difference, and buffers where
    the forward pass reads them: a net that does not change has drift 0 exactly. Of several calls of a layer the first
    is read. Behind a ReLU inputs are not Gaussian, and the divergence is a gap of moments only; W1 has no such reading.

    Args:
        layers: which, as in `select_layers`; None for convolutions, linear, recurrent and activation layers.
        max_layers: the most layers, >= 1.
        sample_size: the most values read of one input, >= 64.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sigmoid())
        >>> batch = torch.linspace(-1, 1, 65)[:, None]
        >>> _, drift = model[0].weight.data.fill_(1.0), InputDrift(layers="activation")
        >>> _ = drift.measure(model, lambda: model(batch))
        >>> _ = model[0].weight.data.fill_(2.0)
        >>> [row] = drift.measure(model, lambda: model(batch))  # v and 4 v: (4 + 1 / 4) / 4 - 1 / 2
        >>> row.layer, round(row.drift_kl, 6), row.drift_mean
        ('1', 0.5625, 0.0)

    Reference: Ioffe & Szegedy 2015 (1502.03167), Figure 1, for the quantiles; the distances are ours.
    """

    def __init__(
        self,
        layers: LayerChoice | Sequence[LayerChoice] | None = None,
        max_layers: int = 64,
        sample_size: int = 4096,
    ) -> None:
        check_max_layers(max_layers)
        if sample_size < 64:
            raise ValueError(f"sample_size is {sample_size}; give at least 64, as many as there are quantiles.")
        self.layers = layers
        self.max_layers = max_layers
        self.sample_size = sample_size
        self._history = History()

    def measure(self, model: nn.Module, forward: Callable[[], object]) -> list[LayerDrift]:
        """Run the model on the fixed batch and compare.

        Args:
            model: the model; buffers, modes and random numbers are put back.
            forward: runs it on the batch, which is the same at every call.

        Returns:
            One entry a layer that was called with a readable floating-point input, in the order of the first calls.

        Raises:
            ProbeError: there is no such layer.
            ValueError: a choice that matches no layer.
        """
        inputs = self._read(model, forward)
        if not inputs:
            raise ProbeError("No layer was called with an input to read: choose other layers, or another forward pass.")
        rows = np.full((len(inputs), self.sample_size), np.nan, np.float32)
        for row, values in zip(rows, inputs.values(), strict=True):
            row[: len(values)] = values
        found = describe(rows, np.array([NO_BOUNDS] * len(rows)))
        keys: list[Key] = [(name, "", 0) for name in inputs]
        moved = self._history.advance(keys, found.grid, found.figures["mean"], found.figures["std"])
        figures = {**{name: found.figures[name] for name in _FIGURES}, **moved}
        return [
            LayerDrift(layer=name, order=order, **{key: float(values[order]) for key, values in figures.items()})
            for order, name in enumerate(inputs)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The first and the last measurement; loads under `weights_only=True`."""
        return self._history.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._history.load_state_dict(state)

    def _read(self, model: nn.Module, forward: Callable[[], object]) -> dict[str, NDArray[np.float32]]:
        choice = _takes_input if self.layers is None else self.layers
        inputs: dict[str, NDArray[np.float32]] = {}
        handles = [
            _on_input(layer, inputs, self.sample_size) for layer in select_layers(model, choice, self.max_layers).chosen
        ]
        try:
            with _same_random_numbers(model), torch.compiler.set_stance("force_eager"):
                forward()
        finally:
            for handle in handles:
                handle.remove()
        return inputs


def _takes_input(_name: str, module: nn.Module) -> bool:
    return kind_of(module) in ("conv", "linear", "recurrent", "activation")


def _on_input(layer: Layer, inputs: dict[str, NDArray[np.float32]], size: int) -> RemovableHandle:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor((args, kwargs))
        if x is not None and layer.name not in inputs:
            # A copy: what follows may write into the input.
            inputs[layer.name] = read(x, locate(x, size)).float().cpu().numpy().copy()

    return layer.module.register_forward_pre_hook(hook, with_kwargs=True)


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    """The generators begin at the same place; afterwards they go on where they were, and buffers are as they were."""
    surroundings = Surroundings(model)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        yield
    finally:
        surroundings.restore()
