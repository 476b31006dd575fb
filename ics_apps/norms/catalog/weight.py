"""Entries that normalise the weight of the layer before them, not its output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.options import NormError
from ics_apps.norms.ranges import check_eps
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "weight_standardization",
    family="weight",
    pools=(),
    scale_invariant=True,
    acts_on_weight=True,
    thrice_differentiable=True,
    reference="Qiao 2019 (1903.10520)",
)
def weight_standardization(channels: int, *, dim: Dim, eps: float = 1e-6) -> nn.Module:  # noqa: ARG001
    """Weight standardization: the weights of each output channel get mean 0 and variance 1.

    W^ = (W - mean_r) / sqrt(var_r + eps) over each row r of the layer before (an output channel), var_r with divisor n.
    The activations pass unchanged.

    When to use: with batches too small for batch norm, before a group norm (Big Transfer) - the paper's pairing. Alone
    it does not bound activations: they grow by about sqrt(fan_in) a layer, so give the layers behind it a norm as well.

    Traps: it has to be attached to its layer, `attach_weight_norm(layer, norm)`; our nets do so. Initialise the layer
    before that, or write to `layer.parametrizations.weight.original`: writing into `layer.weight` changes a temporary
    copy. A row of one weight (1x1 depthwise) would be 0 and is refused. A bias of the layer stays useful.

    Options: `eps` stands inside the root, as in timm. The authors' page adds 1e-5 outside, to a standard deviation with
    divisor n - 1.

    Reference: Qiao 2019 (1903.10520).
    """
    from ics_apps.norms.layers.weight import WeightStandardization

    check_eps(eps)
    return WeightStandardization(channels, eps)


@register_norm(
    "weight_norm",
    family="weight",
    pools=(),
    scale_invariant=True,
    acts_on_weight=True,
    thrice_differentiable=True,
    reference="Salimans & Kingma 2016 (1602.07868)",
)
def weight_norm(channels: int, *, dim: Dim) -> nn.Module:  # noqa: ARG001
    """Weight norm: the length of each output channel's weights is learned apart from their direction.

    W^ = g_r V_r / ||V_r||_2 over each row r of the layer before (an output channel). The activations pass unchanged,
    and g starts at ||V_r||, so the net starts as it was.

    When to use: recurrent and generative nets, vocoders, where statistics of a batch are not wanted. It steadies the
    step size, not the activations. Scale invariant in V, not in g.

    Traps: it has to be attached to its layer, `attach_weight_norm(layer, norm)`; our nets do so. Initialise the layer
    before that. Weight decay shrinks g, which acts, and V, which does not. An output channel of zeros is refused. The
    paper's start from the data (g and bias from the first batch) is not done.

    Reference: Salimans & Kingma 2016 (1602.07868), equation 2.
    """
    from ics_apps.norms.layers.weight import WeightNorm

    return WeightNorm(channels)


@register_norm(
    "spectral_norm",
    family="weight",
    pools=(),
    stateful=True,
    scale_invariant=True,
    acts_on_weight=True,
    thrice_differentiable=False,
    exact_in_bf16=False,
    reference="Miyato 2018 (1802.05957)",
)
def spectral_norm(channels: int, *, dim: Dim, n_power_iterations: int = 1, eps: float = 1e-12) -> nn.Module:  # noqa: ARG001
    """Spectral norm: the weight of the layer before is divided by its largest singular value.

    W^ = W / sigma(W), W as a matrix (out, rest); sigma = u^T W v, where u and v are kept and take `n_power_iterations`
    steps of v <- W^T u, u <- W v at each forward in training. The activations pass unchanged.

    When to use: the discriminator of a GAN, or any net whose Lipschitz constant should stay near 1.

    Traps: u and v move at EVERY forward in training, so D(real) and D(fake) see slightly different weights, and a
    forward that only watches changes the model; in evaluation they rest. For a convolution the bound holds for the
    matrix, not for the map (stride and overlap change that). Derivatives take u and v as constants, so from the second
    order on they are not those of W / sigma(W). In bfloat16, sigma is off by about 0.2 %.

    It has to be attached to its layer, `attach_weight_norm(layer, norm)`; our nets do so. Attaching runs 15 iterations.

    Reference: Miyato 2018 (1802.05957), algorithm 1; torch's parametrization.
    """
    from ics_apps.norms.layers.weight import SpectralNorm

    check_eps(eps)
    if n_power_iterations < 1:
        raise NormError(f"n_power_iterations must be at least 1, got {n_power_iterations}")
    return SpectralNorm(channels, n_power_iterations, eps)
