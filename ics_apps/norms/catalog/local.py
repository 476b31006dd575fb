"""Entries whose statistics run over a window around each value, within one sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.options import NormError
from ics_apps.norms.ranges import check_not_negative
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "local_response",
    family="sample",
    pools=("C",),
    scale_invariant=False,
    thrice_differentiable=True,
    reference="Krizhevsky 2012 (NIPS), section 3.3",
)
def local_response(
    channels: int, *, dim: Dim, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> nn.Module:
    """Local response norm: each value is damped by the energy of the neighbouring channels at its position.

    y_c = x_c / (k + alpha * sum of x_c'^2 over |c' - c| <= size / 2)^beta, c' within the channels. Of the channels it
    pools a window of `size` around each, not all. No centring, nothing learned.

    When to use: to rebuild AlexNet; as the ancestor of the norms that followed. It damps, it does not normalise: small
    inputs are only multiplied by k^-beta (0.59), and the scale stays free.

    Options: `size` is odd. torch and Caffe divide `alpha` by `size`, the paper and this entry do not:
    nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2) is the default here.

    Reference: Krizhevsky 2012 (NIPS), section 3.3.
    """
    from ics_apps.norms.layers.local import LocalResponseNorm

    _check_odd(size=size)
    check_not_negative(alpha=alpha, beta=beta)
    _check_positive(k=k)
    return LocalResponseNorm(channels, dim, size, alpha, beta, k)


@register_norm(
    "divisive",
    family="sample",
    pools=("C", "S"),
    scale_invariant=False,
    absorbs_bias=True,
    thrice_differentiable=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to form windows of; 'layer' is its formula over all their channels",
    reference="Ren 2017 (1611.04520)",
)
def divisive(
    channels: int,
    *,
    dim: Dim,
    window: int = 5,
    across_channels: bool = True,
    sigma: float = 1.0,
    affine: bool = True,
) -> nn.Module:
    """Divisive norm: each value is centred and scaled by the window of positions around it.

    v = x - mean_W x, y = v / sqrt(sigma^2 + mean_W v^2) * weight + bias. W holds the positions at most `window` / 2
    away along each space axis, as far as they lie within the input, and all channels; both means run over the same W,
    and v is centred at each position by that position's own mean. sigma is one learned number; its square counts.

    When to use: images whose contrast varies from place to place; recurrent nets on short windows of tokens. It sits
    between `layer_chw` (a window as large as the image) and `layer_c` (window 1), with a learned threshold in place of
    eps: contrasts far below sigma pass almost linearly, those far above come out at 1.

    Options: `window` is odd. With `across_channels` false each channel has its windows for itself, a local `instance`,
    which a single position is refused by. `sigma` is the start value, positive; 0 would leave constant regions without
    a value.

    Reference: Ren 2017 (1611.04520), with one learned sigma a layer.
    """
    from ics_apps.norms.layers.local import DivisiveNorm

    _check_odd(window=window)
    _check_positive(sigma=sigma)
    return DivisiveNorm(channels, dim, window, across_channels, sigma, affine)


def _check_odd(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1 or size % 2 == 0:
            raise NormError(f"{name} must be odd and positive, so that the window has a middle, got {size}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise NormError(f"{name} must be positive, got {value}")
