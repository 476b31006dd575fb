"""Entries of the sample family: statistics within one sample, so no sample sees another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.ranges import check_eps, check_groups
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "layer",
    family="sample",
    pools=("C",),
    scale_invariant=True,
    absorbs_bias=True,
    dims=(0, "tokens"),
    undefined_because=(
        "on images the name has two meanings; choose 'layer_chw' (over channels and positions) or 'layer_c' (over the "
        "channels at each position)"
    ),
    reference="Ba 2016 (1607.06450)",
)
def layer(channels: int, *, dim: Dim, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Layer norm of features or tokens; on images say `layer_chw` or `layer_c`.

    y = (x - mean_C) / sqrt(var_C + eps) * weight + bias, for each sample or token.

    When to use: transformers and MLPs. The same layer as `layer_c`.

    Reference: Ba 2016 (1607.06450).
    """
    return layer_c(channels, dim=dim, eps=eps, affine=affine)


@register_norm(
    "layer_c",
    family="sample",
    pools=("C",),
    scale_invariant=True,
    absorbs_bias=True,
    reference="Ba 2016 (1607.06450); on images as in ConvNeXt, Liu 2022 (2201.03545)",
)
def layer_c(channels: int, *, dim: Dim, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Layer norm over the channels at each position (ConvNeXt's LayerNorm2d; the meaning for tokens).

    y = (x - mean_C) / sqrt(var_C + eps) * weight + bias, for each position of each sample.

    When to use: ConvNeXt-like nets and transformers; batches of one. Positions do not see each other, so tiles of a
    large image agree exactly. Few channels (fewer than about 8) leave little after centring. Cheap in channels_last,
    where it is a view; otherwise it copies and hands on channels_last. timm uses eps 1e-6, BERT 1e-12.

    Reference: Ba 2016 (1607.06450).
    """
    from ics_apps.norms.layers.sample import LayerNorm

    check_eps(eps)
    return LayerNorm(channels, dim, eps, affine)


@register_norm(
    "layer_chw",
    family="sample",
    pools=("C", "S"),
    thrice_differentiable=True,
    scale_invariant=True,
    absorbs_bias=True,
    dims=(0, 1, 2, 3),
    undefined_because=(
        "tokens are normalised one by one by 'layer_c'; for one statistic over all tokens of a sample take 'group' "
        "with num_groups 1"
    ),
    reference="Ba 2016 (1607.06450); equal to group norm with one group",
)
def layer_chw(channels: int, *, dim: Dim, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Layer norm over channels and positions of a sample (group norm with one group).

    y = (x - mean_CS) / sqrt(var_CS + eps) * weight + bias, one affine pair a channel. torch's nn.LayerNorm([C, H, W])
    is a third thing: it has an affine pair an element and a fixed size.

    When to use: batches of one, when the contrast of the whole sample is a nuisance. The statistics depend on the size
    of the tile. On features (dim 0) equal to `layer_c`.

    Reference: Ba 2016 (1607.06450); Wu & He 2018 (1803.08494) for the view as one group.
    """
    from ics_apps.norms.layers.sample import GroupNorm

    check_eps(eps)
    return GroupNorm(1, channels, dim, eps, affine)


@register_norm(
    "group",
    family="sample",
    pools=("C/G", "S"),
    thrice_differentiable=True,
    scale_invariant=True,
    absorbs_bias=True,
    reference="Wu & He 2018 (1803.08494)",
)
def group(channels: int, *, dim: Dim, num_groups: int = 8, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Group norm: each group of neighbouring channels over all positions of its sample.

    y = (x - mean_g) / sqrt(var_g + eps) * weight + bias, g running over `num_groups` groups of C / num_groups channels.

    When to use: batches smaller than 16, detection, segmentation, 3-D. Needs at least a few values a group: one value
    gives the constant `bias`.

    Options: `num_groups` must divide the channels. The paper takes 32; the default here is 8, so that widths of 8, 16
    and 24 work as well.

    Reference: Wu & He 2018 (1803.08494).
    """
    from ics_apps.norms.layers.sample import GroupNorm

    check_eps(eps)
    check_groups(channels, num_groups)
    return GroupNorm(num_groups, channels, dim, eps, affine)


@register_norm(
    "instance",
    family="sample",
    pools=("S",),
    thrice_differentiable=True,
    scale_invariant=True,
    absorbs_bias=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to pool over",
    reference="Ulyanov 2016 (1607.08022)",
)
def instance(channels: int, *, dim: Dim, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Instance norm: each channel of each sample over its positions.

    y = (x - mean_S) / sqrt(var_S + eps) * weight + bias; the same in training and evaluation, no running statistics.

    When to use: style transfer, medical segmentation (nnU-Net), scanners of different contrast: it cancels a x + b,
    a > 0, of each channel. Refused on a single position, where the result is always `bias`. Tiles of an image disagree.

    Options: `affine` is on here; torch's own nn.InstanceNorm has it off.

    Reference: Ulyanov 2016 (1607.08022).
    """
    from ics_apps.norms.layers.sample import InstanceNorm

    check_eps(eps)
    return InstanceNorm(channels, dim, eps, affine)


@register_norm(
    "rms",
    family="sample",
    pools=("C",),
    thrice_differentiable=True,
    scale_invariant=True,
    reference="Zhang & Sennrich 2019 (1910.07467)",
)
def rms(channels: int, *, dim: Dim, eps: float | None = None, affine: bool = True) -> nn.Module:
    """RMS norm over the channels, at each token and at each position of an image: no centring, no shift.

    y = x / sqrt(mean_C x^2 + eps) * weight.

    When to use: language models; streams whose loudness should be equal while their mean is kept (ParseNet's L2
    normalisation is this up to a factor sqrt(C)). Positions do not see each other. A bias before it is not absorbed.

    Options: `eps` null takes torch's default, the smallest step of the number format it computes in (float32 for half
    precision); Llama and T5 take 1e-6.

    Reference: Zhang & Sennrich 2019 (1910.07467).
    """
    from ics_apps.norms.layers.position import RMSNorm

    check_eps(eps)
    return RMSNorm(channels, dim, eps, affine)


@register_norm(
    "filter_response",
    family="sample",
    pools=("S",),
    scale_invariant=True,
    contains_activation=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to pool over",
    reference="Singh & Krishnan 2020 (1911.09737)",
)
def filter_response(channels: int, *, dim: Dim, eps: float = 1e-6) -> nn.Module:
    """Filter response norm with its thresholded linear unit: replaces norm AND activation.

    z = weight * x / sqrt(mean_S x^2 + eps) + bias, y = max(z, threshold); all three are learned, per channel.

    When to use: batches of one, where batch norm is the model to match. It contains its activation: put none behind it.
    It does not centre, and the paper advises a learning-rate warm-up. A bias before it is not absorbed. The paper
    learns eps where there is one position only; here eps is fixed.

    Reference: Singh & Krishnan 2020 (1911.09737), equations 1-4.
    """
    from ics_apps.norms.layers.sample import FilterResponseNorm

    check_eps(eps)
    return FilterResponseNorm(channels, dim, eps)


@register_norm(
    "global_response",
    family="sample",
    pools=("C", "S"),
    thrice_differentiable=True,
    scale_invariant=False,
    reference="Woo 2023 (2301.00808)",
)
def global_response(channels: int, *, dim: Dim, eps: float = 1e-6) -> nn.Module:
    """Global response norm (ConvNeXt V2): channels compete by their energy; starts as the identity.

    g_c = ||x_c||_2 over the positions, n_c = g_c / (mean_c g_c + eps), y = x + weight * n * x + bias; weight and bias
    start at 0.

    When to use: behind the wide layer of a ConvNeXt block, against channels that all do the same. It does not fix the
    scale: twice the input gives (almost) twice the output, so it does not replace a norm by itself.

    Reference: Woo 2023 (2301.00808).
    """
    from ics_apps.norms.layers.sample import GlobalResponseNorm

    check_eps(eps)
    return GlobalResponseNorm(channels, dim, eps)


@register_norm(
    "evonorm_s0",
    family="sample",
    pools=("C/G", "S"),
    scale_invariant=False,
    contains_activation=True,
    thrice_differentiable=True,
    reference="Liu 2020 (2004.02967), table 1",
)
def evonorm_s0(channels: int, *, dim: Dim, num_groups: int = 8, eps: float = 1e-5) -> nn.Module:
    """EvoNorm-S0: group norm and a learned swish in one layer, found by search; replaces norm AND activation.

    y = x * sigmoid(slope * x) / sqrt(var_g + eps) * weight + bias, slope learned per channel from 1; var over the
    channels of the group and all positions of the sample.

    When to use: batches of one, where batch norm with ReLU is the model to match. Put no activation behind it. It does
    not centre, and a bias before it is not absorbed.

    Options: `num_groups` must divide the channels; the paper takes 32.

    Reference: Liu 2020 (2004.02967), table 1.
    """
    from ics_apps.norms.layers.evonorm import EvoNormS0

    check_eps(eps)
    check_groups(channels, num_groups)
    return EvoNormS0(channels, dim, eps, num_groups)
