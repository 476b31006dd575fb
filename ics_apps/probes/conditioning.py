"""How well each layer's input is conditioned: the eigenvalues of E[h h'], exact, from one forward pass.

The Hessian of the loss is `hessian`; what a layer gives out is `activations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.selection import Layer, LayerChoice, kind_of, select_layers

DAMPING: Final = 1e-3  # t as a share of the mean eigenvalue
WIDEST: Final = 2048  # features, or rows if there are fewer: their cube is what the eigenvalues cost
_CHUNK: Final = 1 << 16  # rows that are held in float64 at a time


@dataclass(frozen=True, slots=True)
class LayerConditioning:
    """One layer's input h over all its calls in one forward pass.

    Attributes:
        layer: its names, joined by `+`.
        order: place in the order of the first calls, from 0.
        features: C.
        condition: (lambda_max + t) / (lambda_min + t) of the matrix E[h h'], in [1, 1 + 1000 C].
        effective_rank: (sum lambda)^2 / sum lambda^2, in [1, C].
        damping: t, a thousandth of the mean eigenvalue, in squared units of h. The three figures are NaN where all
            inputs are 0 or one is not finite, or where C and the number of rows are both above `WIDEST`.
    """

    layer: str
    order: int
    features: int
    condition: float
    effective_rank: float
    damping: float


def input_conditioning(
    model: nn.Module,
    forward: Callable[[], object],
    layers: LayerChoice | Sequence[LayerChoice] | None = None,
    max_layers: int = 64,
) -> list[LayerConditioning]:
    """The conditioning of the inputs of convolutions and linear layers, from one call of `forward`.

    For one layer's weights W, with the gradient at its output held fixed in kind, curvature is E[h h'] times that of
    the output: gradient descent on W converges as fast as this matrix is well conditioned. It is not centred: a mean
    far from 0 is itself bad conditioning. Of a linear layer the features are the last axis, and each position is a row;
    of a convolution the channels, over all samples and positions, so that what neighbouring pixels share does not
    count. The bias is left out. Sums are float64.

    Where there are fewer rows N than features, the eigenvalues are those of the N x N matrix of products of rows and
    C - N zeros. Cost: the forward pass, N C^2 for the matrices, min(N, C)^3 for the eigenvalues.

    Args:
        model: the model; its state is the caller's to keep, see `Objective`.
        forward: runs the model on one batch.
        layers: as in `select_layers`, convolutions and linear layers only; None for all of them.
        max_layers: the most layers, >= 1.

    Returns:
        One entry a layer that was called, in the order of the first calls.

    Raises:
        ProbeError: no layer to measure, or none was called.
        ValueError: a choice that matches no layer, or `max_layers` < 1.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # eigenvalues 2 and 0.5
        >>> found = input_conditioning(nn.Sequential(model), lambda: model(x))
        >>> round(found[0].condition, 3), round(found[0].effective_rank, 3)
        (3.993, 1.471)

    Reference: LeCun et al. 1991, Second order properties of error surfaces; the factor A of K-FAC, Martens & Grosse
        2015 (1503.05671). Damping and pooling of positions are ours.
    """
    inputs: dict[str, _Inputs] = {}  # in the order of the first calls

    def note(layer: Layer, value: Tensor) -> None:
        inputs.setdefault(layer.name, _Inputs()).add(_rows(layer.module, value.detach()))

    with _hooked(_chosen(model, layers, max_layers), note):
        forward()
    if not inputs:
        raise ProbeError("No convolution or linear layer was called: give a forward pass that runs the model's layers.")
    return [_conditioning(name, order, found) for order, (name, found) in enumerate(inputs.items())]


class _Inputs:
    """Rows of C features, added up: as they are while there are fewer than features, then as h h'."""

    def __init__(self) -> None:
        self.count = 0
        self.features = 0
        self._rows: list[Tensor] = []
        self._products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.features = rows.shape[1]
        if self.count <= self.features:
            # A copy: the model may write into its own tensors later.
            self._rows.append(rows.clone())
            return
        if self.features <= WIDEST:
            for part in (*self._rows, *torch.split(rows, _CHUNK)):
                products = part.double().T @ part.double()
                self._products = products if self._products is None else self._products + products
        self._rows = []

    def eigenvalues(self) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """Those of E[h h'], all C of them; None if they are too many, or an input is not finite."""
        if self._rows and self._products is None:
            held = torch.cat(self._rows).double()
            products = held @ held.T if len(held) <= WIDEST else None
        else:
            products = self._products
        if products is None or not bool(torch.isfinite(products).all()):
            return None
        found = torch.linalg.eigvalsh(products / self.count).clamp(min=0.0).cpu().numpy()
        return np.concatenate([np.zeros(self.features - len(found)), found])


def _conditioning(name: str, order: int, inputs: _Inputs) -> LayerConditioning:
    values = inputs.eigenvalues()
    if values is None or values.max() == 0:
        return LayerConditioning(name, order, inputs.features, math.nan, math.nan, math.nan)
    t = DAMPING * float(values.mean())
    condition = (float(values.max()) + t) / (float(values.min()) + t)
    rank = float(values.sum() ** 2 / np.square(values).sum())
    return LayerConditioning(name, order, inputs.features, condition, rank, t)


def _chosen(model: nn.Module, layers: LayerChoice | Sequence[LayerChoice] | None, max_layers: int) -> list[Layer]:
    if not any(_is_measurable(module) for module in model.modules()):
        raise ProbeError("The model has no convolution or linear layer: there is no layer input to measure.")
    choice = (lambda _name, module: _is_measurable(module)) if layers is None else layers
    chosen = select_layers(model, choice, max_layers).chosen
    unfit = [layer.name for layer in chosen if not _is_measurable(layer.module)]
    if unfit:
        raise ProbeError(f"layers: {unfit[0]} is no convolution or linear layer; choose from those.")
    return list(chosen)


def _is_measurable(module: nn.Module) -> bool:
    return kind_of(module) in ("conv", "linear") and not isinstance(module, nn.Bilinear)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """Its input as rows of features, `(N, C)`."""
    if isinstance(module, nn.modules.conv._ConvNd):
        # Without a batch axis channels come first.
        x = x.movedim(-1 - len(module.kernel_size), -1)
    return x.reshape(-1, x.shape[-1])


@contextmanager
def _hooked(layers: Sequence[Layer], note: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Each call of a layer is noted with its input, given by position or by name."""

    def hook_of(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(layer, args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [layer.module.register_forward_pre_hook(hook_of(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
