"""Entries of the mixed family: batch statistics together with statistics within a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.ranges import check_eps, check_groups, check_momentum
from ics_apps.norms.registry import Dim, NormError, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "switchable",
    family="mixed",
    pools=("N", "C", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Luo 2018 (1806.10779)",
)
def switchable(channels: int, *, dim: Dim, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """Switchable norm: a learned mix of instance, layer (C, S) and batch statistics.

    y = (x - sum_k w_k mu_k) / sqrt(sum_k w'_k v_k + eps) * weight + bias; w and w' are two softmaxes over the three
    kinds. It mixes the variances, not the normalised outputs. Evaluation takes running values for the batch part.
    Features (dim 0) have no positions and mix layer and batch.

    When to use: to let a net say which statistics it wants (read the softmaxes after training).

    Differs from the authors' code: every variance is biased (theirs: unbiased for instance), the running variance
    starts at 1 (theirs: 0) and stores the unbiased value as torch's batch norm does.

    Options: `momentum` is the weight of the NEW batch.

    Reference: Luo 2018 (1806.10779), equations 3-5.
    """
    from ics_apps.norms.layers.mixed import SwitchableNorm

    check_eps(eps)
    check_momentum(momentum)
    return SwitchableNorm(channels, dim, eps, momentum)


@register_norm(
    "batch_instance",
    family="mixed",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to pool over",
    reference="Nam & Kim 2018 (1805.07925)",
)
def batch_instance(channels: int, *, dim: Dim, eps: float = 1e-5, momentum: float = 0.1, rho: float = 1.0) -> nn.Module:
    """Batch-instance norm: each channel learns how much of its style (contrast) to keep.

    y = (rho * x_batch + (1 - rho) * x_instance) * weight + bias, rho learned per channel and cut to [0, 1].

    When to use: images whose style is partly nuisance, partly signal. Read `rho` after training: 0 means that the
    channel throws contrast away.

    Options: `rho` is the start of the gate; 1 is batch norm. Outside [0, 1] its gradient is 0 but for weight decay,
    which pulls it back from above only; the authors give it a larger learning rate and no decay.

    Reference: Nam & Kim 2018 (1805.07925), equations 3-5.
    """
    from ics_apps.norms.layers.mixed import BlendedNorm

    check_eps(eps)
    check_momentum(momentum)
    _check_gate(rho)
    return BlendedNorm(channels, dim, eps, momentum, channels, rho)


@register_norm(
    "batch_layer",
    family="mixed",
    pools=("N", "C", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Khaled 2023 (2312.00596); near: Ziaee & Cano 2022 (2209.08898)",
)
def batch_layer(channels: int, *, dim: Dim, eps: float = 1e-5, momentum: float = 0.1, rho: float = 0.5) -> nn.Module:
    """Batch-layer norm: a learned blend of batch norm and layer norm.

    y = (rho * x_batch + (1 - rho) * x_layer) * weight + bias, rho learned per channel and cut to [0, 1]; the layer norm
    is that over channels and positions of a sample (`layer_chw`; for tokens over all tokens of a sample).

    When to use: batches of changing or small size, where neither is trusted alone. Khaled calls it BCN, a name that
    `batch_channel` had before.

    Options: `rho` is the start of the gate; 1 is batch norm.

    Reference: Khaled 2023 (2312.00596); Ziaee & Cano 2022 (2209.08898) set the weight from the batch size instead.
    """
    from ics_apps.norms.layers.mixed import BlendedNorm

    check_eps(eps)
    check_momentum(momentum)
    _check_gate(rho)
    return BlendedNorm(channels, dim, eps, momentum, 1, rho)


@register_norm(
    "batch_channel",
    family="mixed",
    pools=("N", "C/G", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Qiao 2019 (1911.09738)",
)
def batch_channel(
    channels: int, *, dim: Dim, num_groups: int = 8, eps: float = 1e-5, momentum: float = 0.1
) -> nn.Module:
    """Batch-channel norm: batch norm, then group norm of its result, each with its own affine values.

    z = (x - mean_B) / sqrt(var_B + eps) * weight + bias, y = (z - mean_g) / sqrt(var_g + eps) * weight_g + bias_g, one
    pair (weight_g, bias_g) a group. Both are computed in one pass.

    When to use: with `weight_standardization` on small batches, against channels that die under group norm alone. The
    paper's variant with slowly moving estimates in place of the batch's moments is not built in.

    Options: `num_groups` must divide the channels; the paper takes 32.

    Reference: Qiao 2019 (1911.09738), section 4.
    """
    from ics_apps.norms.layers.mixed import BatchChannelNorm

    check_eps(eps)
    check_momentum(momentum)
    check_groups(channels, num_groups)
    return BatchChannelNorm(channels, dim, eps, momentum, num_groups)


@register_norm(
    "evonorm_b0",
    family="mixed",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    contains_activation=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to pool over",
    reference="Liu 2020 (2004.02967), table 1",
)
def evonorm_b0(channels: int, *, dim: Dim, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """EvoNorm-B0: batch and instance deviations in one layer with its nonlinearity; replaces norm AND activation.

    y = x / max(sqrt(var_B + eps), slope * x + sqrt(var_S + eps)) * weight + bias, slope learned per channel from 1.

    When to use: where batch norm with ReLU works and a better curve is looked for. Put no activation behind it. It
    does not centre, and a bias before it is not absorbed. The maximum has a kink.

    Options: `momentum` is the weight of the NEW batch; timm takes eps 1e-3.

    Reference: Liu 2020 (2004.02967), table 1.
    """
    from ics_apps.norms.layers.evonorm import EvoNormB0

    check_eps(eps)
    check_momentum(momentum)
    return EvoNormB0(channels, dim, eps, momentum)


def _check_gate(rho: float) -> None:
    if not 0 <= rho <= 1:
        raise NormError(f"rho is the share of batch norm and lies in [0, 1], got {rho}")
