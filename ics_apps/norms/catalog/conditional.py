"""Entries of the conditional family: scale and shift from a class, a vector or a style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.ranges import check_at_least, check_eps, check_groups, check_momentum
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn

    from ics_apps.norms.layers.conditional import ConditionalAffine


@register_norm(
    "conditional_batch",
    family="conditional",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="de Vries 2017 (1707.00683); class tables: Dumoulin 2017 (1610.07629)",
)
def conditional_batch(
    channels: int,
    *,
    dim: Dim,
    num_classes: int = 10,
    label_features: int = 0,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Module:
    """Batch norm whose weight and bias depend on the label of each sample.

    y = (x - mean_B) / sqrt(var_B + eps) * (1 + gamma(label)) + beta(label); gamma and beta start at 0.

    When to use: class-conditional GAN generators (BigGAN), questions that steer vision. Statistics are those of all
    classes together; see `batch_per_domain` for statistics of each.

    How: `with norm_context(label=labels): y = net(x)`, or `norm(x, labels)`. Options: `num_classes` for int64 labels
    (B,); `label_features` E > 0 for vectors (B, E), through a linear map.

    Reference: de Vries 2017 (1707.00683); BigGAN's gain 1 + linear(label).
    """
    from ics_apps.norms.layers.conditional import ConditionalBatchNorm

    check_eps(eps)
    check_momentum(momentum)
    return ConditionalBatchNorm(_affine(channels, num_classes, label_features), dim, eps, momentum)


@register_norm(
    "conditional_instance",
    family="conditional",
    pools=("S",),
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to pool over",
    reference="Dumoulin 2017 (1610.07629)",
)
def conditional_instance(
    channels: int, *, dim: Dim, num_classes: int = 10, label_features: int = 0, eps: float = 1e-5
) -> nn.Module:
    """Instance norm whose weight and bias depend on the label of each sample.

    y = (x - mean_S) / sqrt(var_S + eps) * (1 + gamma(label)) + beta(label); gamma and beta start at 0.

    When to use: many styles in one net; StyleGAN's modulation is this with vectors as labels.

    How: `with norm_context(label=labels): y = net(x)`, or `norm(x, labels)`. Options as in `conditional_batch`.

    Reference: Dumoulin 2017 (1610.07629).
    """
    from ics_apps.norms.layers.conditional import ConditionalGroupNorm

    check_eps(eps)
    return ConditionalGroupNorm(_affine(channels, num_classes, label_features), dim, eps, channels)


@register_norm(
    "conditional_group",
    family="conditional",
    pools=("C/G", "S"),
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Wu & He 2018 (1803.08494) with FiLM, Perez 2018 (1709.07871)",
)
def conditional_group(
    channels: int, *, dim: Dim, num_groups: int = 8, num_classes: int = 10, label_features: int = 0, eps: float = 1e-5
) -> nn.Module:
    """Group norm whose weight and bias depend on the label of each sample.

    y = (x - mean_g) / sqrt(var_g + eps) * (1 + gamma(label)) + beta(label); gamma and beta start at 0.

    When to use: diffusion nets (the label is the embedding of time), conditional nets on small batches.

    How: `with norm_context(label=labels): y = net(x)`, or `norm(x, labels)`. Options: `num_groups` must divide the
    channels; the others as in `conditional_batch`.

    Reference: Wu & He 2018 (1803.08494); Perez 2018 (1709.07871).
    """
    from ics_apps.norms.layers.conditional import ConditionalGroupNorm

    check_eps(eps)
    check_groups(channels, num_groups)
    return ConditionalGroupNorm(_affine(channels, num_classes, label_features), dim, eps, num_groups)


@register_norm(
    "conditional_layer",
    family="conditional",
    pools=("C",),
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    dims=(0, "tokens"),
    undefined_because=(
        "on images layer norm has two meanings; for that over channels and positions take 'conditional_group' with "
        "num_groups 1"
    ),
    reference="Peebles & Xie 2022 (2212.09748), adaLN",
)
def conditional_layer(
    channels: int, *, dim: Dim, num_classes: int = 10, label_features: int = 0, eps: float = 1e-5
) -> nn.Module:
    """Layer norm of features or tokens whose weight and bias depend on the label of each sample.

    y = (x - mean_C) / sqrt(var_C + eps) * (1 + gamma(label)) + beta(label); gamma and beta start at 0.

    When to use: diffusion transformers (adaLN), text steered by a class. The zero gate that DiT puts on its residual
    branch is not part of the norm.

    How: `with norm_context(label=labels): y = net(x)`, or `norm(x, labels)`. Options as in `conditional_batch`.

    Reference: Peebles & Xie 2022 (2212.09748).
    """
    from ics_apps.norms.layers.conditional import ConditionalLayerNorm

    check_eps(eps)
    return ConditionalLayerNorm(_affine(channels, num_classes, label_features), dim, eps)


@register_norm(
    "adaptive_instance",
    family="conditional",
    pools=("S",),
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    dims=(1, 2, 3, "tokens"),
    undefined_because="features have no positions to pool over",
    reference="Huang & Belongie 2017 (1703.06868), equation 8",
)
def adaptive_instance(channels: int, *, dim: Dim, eps: float = 1e-5) -> nn.Module:
    """Adaptive instance norm (AdaIN): each channel takes mean and standard deviation of a style's feature map.

    y = s(style) * (x - mean_S(x)) / s(x) + mean_S(style), s = sqrt(var_S + eps). No parameters.

    When to use: style transfer with any style; mixing the statistics of samples as an augmentation. The authors' code
    takes unbiased variances, this one biased ones.

    How: `with norm_context(style=map): y = net(x)`, or `norm(x, map)`; the map has the channels of x, any size, and the
    batch of x or one sample.

    Reference: Huang & Belongie 2017 (1703.06868), equation 8.
    """
    from ics_apps.norms.layers.conditional import AdaptiveInstanceNorm

    check_eps(eps)
    return AdaptiveInstanceNorm(channels, dim, eps)


def _affine(channels: int, num_classes: int, label_features: int) -> ConditionalAffine:
    from ics_apps.norms.layers.conditional import ConditionalAffine

    check_at_least(1, num_classes=num_classes)
    check_at_least(0, label_features=label_features)
    return ConditionalAffine(channels, num_classes, label_features)
