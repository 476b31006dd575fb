"""Norms of a layer's weight in place of its output. Their names live in `catalog.weight`.

Each is a module that stands behind a layer like any norm and hands activations through; `attach` puts its formula on
that layer's weight, as a `torch.nn.utils.parametrize` parametrization. Rows are output channels: axis 0 of a linear
layer's or convolution's weight (out, in / groups, *kernel), axis 1 within each group of a transposed convolution's
(in, out / groups, *kernel).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations, parametrize

from ics_apps.norms.engine.axes import widened
from ics_apps.norms.options import NormError


class WeightNormalization(nn.Module, ABC):
    """The identity on activations, whose `attach` normalises the weight of the layer before it.

    The layer owns everything that is learned or stored: its state dict has the keys `parametrizations.weight...` where
    it had `weight`, and this module has none.

    Attributes:
        name: The registered name.
        attached: Whether it stands behind a layer; its forward refuses to run before, lest it do nothing unnoticed.

    Example:
        >>> from ics_apps.norms import make_norm
        >>> conv, norm = nn.Conv2d(3, 8, 3), make_norm("weight_standardization", 8)
        >>> attach_weight_norm(conv, norm)
        >>> conv.weight.mean((1, 2, 3)).abs().max().item() < 1e-6
        True
        >>> sorted(conv.state_dict())
        ['bias', 'parametrizations.weight.original']
    """

    name: str

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.attached = False

    def attach(self, layer: nn.Module) -> None:
        """Normalise the weight of `layer` from now on.

        Raises:
            NormError: It is no linear layer or convolution, has another number of channels, not yet a weight, or a
                weight that is normalised already or cannot be; or this norm is behind another layer.
        """
        _check_layer(self, layer)
        self._register(layer)
        self.attached = True

    def forward(self, x: Tensor) -> Tensor:
        """Hand the activations through.

        Raises:
            NormError: The norm stands behind no layer yet.
        """
        if not self.attached:
            raise NormError(
                f"norm {self.name!r} acts on the weight of the layer before it and is attached to none; call "
                "attach_weight_norm(layer, norm) once, with that convolution or linear layer"
            )
        return x

    @abstractmethod
    def _register(self, layer: nn.Module) -> None: ...

    def extra_repr(self) -> str:
        """Channels, and whether it is attached."""
        return f"{self.num_features}, attached={self.attached}"


class WeightStandardization(WeightNormalization):
    """W^ = (W - mean_r) / sqrt(var_r + eps) over each row r, with the biased variance."""

    name = "weight_standardization"

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__(num_features)
        self.eps = eps

    def _register(self, layer: nn.Module) -> None:
        groups = _transposed_groups(layer)
        rows, axes = _rows(_weight(layer), groups)
        if rows.shape.numel() == torch.Size(rows.shape[axis] for axis in range(rows.dim()) if axis not in axes).numel():
            raise NormError(
                f"norm {self.name!r} needs at least two weights to an output channel, and {layer} has one, whose "
                "standardised value is always 0; use 'weight_norm' or 'none' there"
            )
        parametrize.register_parametrization(layer, "weight", _Standardized(self.eps, groups))


class WeightNorm(WeightNormalization):
    """W^ = g_r V_r / ||V_r||_2 over each row r; g and V are learned and start so that W^ = W."""

    name = "weight_norm"

    def _register(self, layer: nn.Module) -> None:
        groups, weight = _transposed_groups(layer), _weight(layer)
        if not weight.is_meta and not _lengths(weight.detach(), groups).all():
            raise NormError(
                f"norm {self.name!r} cannot start from an output channel whose weights are all 0, which has no "
                f"direction; initialise {layer} otherwise, or attach the norm to another layer"
            )
        parametrize.register_parametrization(layer, "weight", _LengthAndDirection(groups))


class SpectralNorm(WeightNormalization):
    """W^ = W / sigma(W), sigma the largest singular value of W as a matrix (out, rest), by power iteration."""

    name = "spectral_norm"

    def __init__(self, num_features: int, n_power_iterations: int, eps: float) -> None:
        super().__init__(num_features)
        self.n_power_iterations = n_power_iterations
        self.eps = eps

    def _register(self, layer: nn.Module) -> None:
        # torch takes axis 1 for transposed convolutions by itself.
        parametrizations.spectral_norm(layer, "weight", self.n_power_iterations, self.eps)


def attach_weight_norm(layer: nn.Module | None, norm: nn.Module) -> None:
    """Attach a norm to the layer before it if it acts on weights; do nothing for all other norms.

    Nets call this for each pair of layer and norm, so that they take norms of both kinds. `layer` is None where a norm
    stands behind no layer of its own, such as a stream on its way to a concatenation.

    Raises:
        NormError: As `WeightNormalization.attach`; or there is no layer.
    """
    if not isinstance(norm, WeightNormalization):
        return
    if layer is None:
        raise NormError(
            f"norm {norm.name!r} acts on the weight of the layer right before it, and there is none here; take a norm "
            "of activations"
        )
    norm.attach(layer)


class _Standardized(nn.Module):
    def __init__(self, eps: float, groups: int | None) -> None:
        super().__init__()
        self.eps = eps
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        rows, axes = _rows(widened(weight), self.groups)
        variance, mean = torch.var_mean(rows, axes, correction=0, keepdim=True)
        return ((rows - mean) * torch.rsqrt(variance + self.eps)).reshape(weight.shape).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What an assignment to `layer.weight` stores: the value itself, which is standardised on reading."""
        return weight


class _LengthAndDirection(nn.Module):
    """Stores g and V under the names and in the shapes of torch's own weight norm, whose states load here.

    torch's fused `_weight_norm` is not used: its third derivative in V is wrong.
    """

    def __init__(self, groups: int | None) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        rows, axes = _rows(widened(v), self.groups)
        length = g if self.groups is None else g.unsqueeze(1)
        scaled = rows * (length * rows.square().sum(axes, keepdim=True).rsqrt())
        return scaled.reshape(v.shape).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _lengths(weight, self.groups), weight


def _lengths(weight: Tensor, groups: int | None) -> Tensor:
    rows, axes = _rows(widened(weight), groups)
    lengths = rows.square().sum(axes, keepdim=True).sqrt().to(weight.dtype)
    return lengths if groups is None else lengths.squeeze(1)


def _rows(weight: Tensor, groups: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """A view of the weight, and its axes that run within a row; `groups` is None unless the layer is transposed."""
    if groups is None:
        return weight, tuple(range(1, weight.dim()))
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return grouped, (1, *range(3, grouped.dim()))


def _transposed_groups(layer: nn.Module) -> int | None:
    return layer.groups if isinstance(layer, _ConvTransposeNd) else None


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise NormError(f"the weight of {layer} is no tensor")
    return weight


def _check_layer(norm: WeightNormalization, layer: nn.Module) -> None:
    name = norm.name
    if norm.attached:
        raise NormError(f"this norm {name!r} is attached to a layer already; make one norm for each layer")
    if not isinstance(layer, nn.Linear | _ConvNd):
        raise NormError(
            f"norm {name!r} acts on the weight of a linear layer or a convolution, got {type(layer).__name__}"
        )
    if isinstance(layer.weight, nn.UninitializedParameter):
        raise NormError(f"{layer} has no weight yet; run it once before norm {name!r} is attached")
    if parametrize.is_parametrized(layer, "weight"):
        raise NormError(f"the weight of {layer} is parametrized already; norm {name!r} takes a layer's plain weight")
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if channels != norm.num_features:
        raise NormError(f"norm {name!r} was made for {norm.num_features} channels, and {layer} gives {channels}")
