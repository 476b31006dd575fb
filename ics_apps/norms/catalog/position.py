"""Entries that scale the channel vector of each position by its own length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.options import NormError
from ics_apps.norms.ranges import check_eps
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "scale_norm",
    family="sample",
    pools=("C",),
    scale_invariant=True,
    thrice_differentiable=True,
    reference="Nguyen & Salazar 2019 (1910.05895)",
)
def scale_norm(channels: int, *, dim: Dim, eps: float = 1e-5) -> nn.Module:
    """Scale norm: the channel vector of each token or position gets one learned length.

    y = weight * x / max(||x||_2, eps) with one scalar weight a layer, at first sqrt(C). No centring, no shift.

    When to use: in place of layer norm in a transformer, above all with little data; C - 1 parameters fewer than `rms`,
    which it equals while all weights of that are the same. Positions do not see each other. A bias before it is not
    absorbed.

    Options: vectors shorter than `eps` are only multiplied, by weight / eps.

    Reference: Nguyen & Salazar 2019 (1910.05895).
    """
    from ics_apps.norms.layers.position import ScaleNorm

    check_eps(eps)
    if eps < 1e-18:
        raise NormError(f"eps must be at least 1e-18, since its square has to exist in float32, got {eps}")
    return ScaleNorm(channels, dim, eps)


@register_norm(
    "pixel",
    family="sample",
    pools=("C",),
    scale_invariant=True,
    thrice_differentiable=True,
    reference="Karras 2018 (1710.10196)",
)
def pixel(channels: int, *, dim: Dim, eps: float = 1e-8) -> nn.Module:
    """Pixel norm: the channel vector of each position gets the root mean square 1; nothing is learned.

    y = x / sqrt(mean_C x^2 + eps).

    When to use: generators, behind each convolution and its activation, against signals that run away (progressive
    GANs). Equal to `rms` without its weight. A bias before it is not absorbed.

    Traps: with one channel only the sign is left.

    Reference: Karras 2018 (1710.10196), section 4.2.
    """
    from ics_apps.norms.layers.position import PixelNorm

    check_eps(eps)
    return PixelNorm(channels, dim, eps)
