"""How large the watched layers' own parameters are, and how far one optimizer step moves them.

Read are samples of `weight` and `bias` only; gradients and activations are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ics_apps.probes.activations.sampling import Positions, first_tensor, locate, read
from ics_apps.probes.selection import Layer

Float64 = NDArray[np.float64]

FIGURES: Final = (
    *("weight_norm", "update_ratio", "effective_lr"),
    *("gamma_mean", "gamma_std", "beta_mean", "beta_std"),
)


class WeightWatch:
    """Samples of every layer's weight before and after an optimizer step, and of every norm's bias before it.

    A tensor of at most `size` elements is read in full and its figures are exact; of a larger one `size` elements are
    read, evenly spaced, and ||w|| is sqrt(numel * mean square of these): its relative standard error is
    1 / sqrt(2 size) for Gaussian weights, 4 % at 256. Samples stay on the parameters' device, in memory that is
    allocated once, until `after` fetches them with one transfer a device. Parametrised weights are read as they are
    stored, since asking for the weight would run the parametrization (a spectral norm would take a step): norm and
    update are those of the unconstrained weight. There are no figures (NaN) for a layer
    without a weight of its own, with one that is made of several tensors (`weight_norm`), or whose weight is lazy,
    sharded (DTensor), on the meta device, or no floating-point tensor.

    Args:
        layers: the watched layers.
        size: elements read of each tensor at most.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([3.0, 4.0]))
        >>> watch = WeightWatch([Layer(("fc",), "linear", layer)])
        >>> watch.before()
        >>> _ = layer.weight.data.mul_(0.5)
        >>> figures = watch.after()
        >>> figures["weight_norm"].tolist(), figures["update_ratio"].tolist()
        ([5.0], [0.5])

    Reference: ours; the learning rate of a scale-invariant weight, van Laarhoven 2017 (1706.05350).
    """

    def __init__(self, layers: Sequence[Layer], size: int = 256) -> None:
        self._count = len(layers)
        self._size = size
        self._places = [(number, "weight", _owner(layer)) for number, layer in enumerate(layers)]
        self._places += [(n, "bias", _owner(layer)) for n, layer in enumerate(layers) if layer.kind == "norm"]
        self._is_norm = np.array([layer.kind == "norm" for layer in layers], bool)
        self._known: list[_Form | None] = []
        self._banks: list[_Bank] = []
        self._is_read = False

    def before(self) -> None:
        """Read the parameters before the step; no wait for the device."""
        found = [_own(module, name) for _, name, module in self._places]
        forms = [None if tensor is None else _form(tensor) for tensor in found]
        if forms != self._known or not self._banks:
            self._known = forms
            self._banks = self._planned(found)
        with torch.no_grad():
            for bank in self._banks:
                bank.tensors = [found[place] for place in bank.places]
                bank.read_before()
        self._is_read = True

    def after(
        self, lr: Mapping[int, float] | None = None, scale_invariant: AbstractSet[int] = frozenset()
    ) -> dict[str, Float64]:
        """Read the weights after the step and compare.

        All figures but the update are those of the parameters before the step, with which the forward ran. A parameter
        that was replaced by another object, moved or reshaped since then has no update.

        Args:
            lr: learning rate by `id` of the parameter.
            scale_invariant: numbers of the layers whose output goes straight into a norm.

        Returns:
            `(L,)` each, NaN where not defined: `weight_norm` ||w||; `update_ratio` ||w_after - w|| / ||w||, 0 where
            nothing moved; `effective_lr` lr / ||w||^2 of scale-invariant weights; `gamma_mean`, `gamma_std`,
            `beta_mean`, `beta_std` of norms' weights and biases. All NaN without `before`.
        """
        figures = {name: np.full(self._count, np.nan) for name in FIGURES}
        if not self._is_read:
            return figures
        self._is_read = False
        with torch.no_grad(), np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for bank in self._banks:
                now = [_own(self._places[place][2], "weight") for place in bank.places[: bank.weights]]
                self._fill(figures, bank, now)
                for number, tensor in zip(bank.numbers[: bank.weights].tolist(), bank.tensors, strict=False):
                    if number in scale_invariant and lr is not None and id(tensor) in lr:
                        figures["effective_lr"][number] = lr[id(tensor)] / figures["weight_norm"][number] ** 2
                # The parameters are not ours to keep.
                bank.tensors = []
        return figures

    def _fill(self, figures: dict[str, Float64], bank: _Bank, now: Sequence[Tensor | None]) -> None:
        values, after, same = bank.fetch(now)
        weights, counts = bank.weights, bank.counts
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        mean = np.add.reduceat(values, starts) / counts
        std = np.sqrt(np.add.reduceat(np.square(values - np.repeat(mean, counts)), starts) / counts)
        square = np.add.reduceat(np.square(values), starts) / counts
        numbers = bank.numbers[:weights]
        figures["weight_norm"][numbers] = np.sqrt(square[:weights] * bank.sizes[:weights])
        if weights:
            change = after - values[: len(after)]
            moved = np.sqrt(np.add.reduceat(np.square(change), starts[:weights]) / counts[:weights])
            ratio = np.where(moved == 0, 0.0, moved / np.where(square > 0, np.sqrt(square), np.nan)[:weights])
            figures["update_ratio"][numbers] = np.where(same, ratio, np.nan)
        for name, part in (("gamma", slice(None, weights)), ("beta", slice(weights, None))):
            norms = self._is_norm[bank.numbers[part]]
            figures[f"{name}_mean"][bank.numbers[part][norms]] = mean[part][norms]
            figures[f"{name}_std"][bank.numbers[part][norms]] = std[part][norms]

    def _planned(self, found: Sequence[Tensor | None]) -> list[_Bank]:
        by_device: dict[torch.device, list[int]] = {}
        for place, tensor in enumerate(found):
            if tensor is not None:
                by_device.setdefault(tensor.device, []).append(place)
        return [self._bank(places, found) for places in by_device.values()]

    def _bank(self, places: list[int], found: Sequence[Tensor | None]) -> _Bank:
        tensors = [tensor for place in places if (tensor := found[place]) is not None]
        where = [locate(tensor, self._size) for tensor in tensors]
        counts = [positions.count for positions in where]
        weights = sum(self._places[place][1] == "weight" for place in places)
        # A first step under inference_mode must not make inference tensors, which nobody may write later.
        with torch.inference_mode(False):
            memory = torch.empty(sum(counts), device=tensors[0].device)
        return _Bank(
            places=places,
            numbers=np.array([self._places[place][0] for place in places]),
            weights=weights,
            where=where,
            counts=np.array(counts),
            sizes=np.array([tensor.numel() for tensor in tensors]),
            memory=memory,
            slots=list(torch.split(memory, counts)),
            tensors=[],
        )


_Form = tuple[torch.Size, tuple[int, ...], torch.device]


@dataclass(slots=True, eq=False)
class _Bank:
    """The samples of one device before the step, end to end: weights, then biases."""

    places: list[int]  # where each tensor stands among all that are asked for: weights, then biases
    numbers: NDArray[np.int64]  # the layer of each
    weights: int  # how many of them are weights
    where: list[Positions]
    counts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    memory: Tensor
    slots: list[Tensor]
    tensors: list[Tensor | None]  # those that `read_before` read

    def read_before(self) -> None:
        views = [read(t, where) for t, where in zip(self.tensors, self.where, strict=True) if t is not None]
        torch._foreach_copy_(self.slots, views)

    def fetch(self, tensors: Sequence[Tensor | None]) -> tuple[Float64, Float64, NDArray[np.bool_]]:
        """All samples before the step, those of the weights after it, and which weights are the same parameters."""
        same = [
            new is old and new is not None and new.device == self.memory.device and new.numel() == size
            for new, old, size in zip(tensors, self.tensors, self.sizes.tolist(), strict=False)
        ]
        both = zip(tensors, same, self.where, self.slots, strict=False)
        after = [read(new, where) if is_same and new is not None else slot for new, is_same, where, slot in both]
        values: NDArray[Any] = torch.cat([self.memory, *after]).cpu().numpy().astype(np.float64)
        return values[: len(self.memory)], values[len(self.memory) :], np.array(same, bool)


def _owner(layer: Layer) -> nn.Module:
    """The module that holds the parameters: a norm may be wrapped by one that adapts its input or adds noise."""
    module = layer.module
    while layer.kind == "norm" and "weight" not in module._parameters and "weight" not in module._buffers:
        inner = module._modules.get("norm")
        if inner is None:
            break
        module = inner
    return module


def _own(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a layer itself, as it is stored; None if there is none that can be read."""
    tensor: Tensor | None = module._parameters.get(name)
    if tensor is None:
        tensor = module._buffers.get(name)
    if tensor is None and "parametrizations" in module._modules:
        stored: Any = module._modules["parametrizations"]
        tensor = stored._modules[name]._parameters.get("original") if name in stored._modules else None
    if tensor is None or is_lazy(tensor):
        return None
    return first_tensor(tensor)


def _form(tensor: Tensor) -> _Form:
    return tensor.shape, tensor.stride(), tensor.device
