"""Entries of the batch family: statistics over the batch, their frozen form, and batch norm with noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.ranges import check_eps, check_momentum, check_not_negative
from ics_apps.norms.registry import Dim, NormError, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "batch",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    reference="Ioffe & Szegedy 2015 (1502.03167)",
)
def batch(
    channels: int,
    *,
    dim: Dim,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
) -> nn.Module:
    """Batch norm: each channel over all samples and positions of the batch.

    y = (x - mean) / sqrt(var + eps) * weight + bias; training takes the batch's mean and biased variance, evaluation
    the running ones. The running variance stores the unbiased value, so evaluation on the same batch differs by
    sqrt((m - 1) / m), m the number of values per channel.

    When to use: batches of 16 or more that look like the test data. Small batches make the statistics noisy (with m
    independent values the mean errs by sigma / sqrt(m)); a shifted test set makes the running ones wrong. A batch with
    one value per channel is refused by torch in training.

    Options: `momentum` is the weight of the NEW batch (Keras and Flax: of the old); null averages all batches equally.

    Reference: Ioffe & Szegedy 2015 (1502.03167).
    """
    from ics_apps.norms.batch import batch_norm

    check_eps(eps)
    check_momentum(momentum)
    return batch_norm(channels, dim, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats)


@register_norm(
    "batch_frozen",
    family="batch",
    pools=(),
    scale_invariant=False,
    reference="torchvision FrozenBatchNorm2d; statistics of Ioffe & Szegedy 2015 (1502.03167)",
)
def batch_frozen(channels: int, *, dim: Dim, eps: float = 1e-5) -> nn.Module:
    """Frozen batch norm: running statistics and affine values are all constants.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, the same in training and evaluation. All four are
    buffers: nothing learns, nothing drifts. They start at (0, 1, 1, 0), so fresh from here it changes (almost) nothing;
    load a batch norm's state into it.

    When to use: fine-tuning a pretrained batch-norm net on batches too small for statistics. The field also calls
    "frozen" a layer with fixed statistics and a trainable affine: that is not this one.

    Reference: torchvision's FrozenBatchNorm2d.
    """
    from ics_apps.norms.batch import FrozenBatchNorm

    check_eps(eps)
    return FrozenBatchNorm(channels, dim, eps)


@register_norm(
    "batch_noisy",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    reference="Santurkar 2018 (1805.11604), Algorithm 1",
)
def batch_noisy(
    channels: int,
    *,
    dim: Dim,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    n_mu: float = 0.5,
    n_sigma: float = 1.25,
    r_mu: float = 0.1,
    r_sigma: float = 0.1,
) -> nn.Module:
    """Batch norm with noise behind it that shifts its distribution at every step.

    y = s * batch(x) + m. Per step and channel: mu ~ U(-n_mu, n_mu), sigma ~ U(1, n_sigma); per sample and position:
    m ~ U(mu - r_mu, mu + r_mu), s ~ N(sigma, r_sigma). No noise in evaluation. The paper leaves open whether r_sigma is
    a standard deviation or a variance (here: standard deviation) and what evaluation does (here: no noise).

    When to use: to test the claim that batch norm works by reducing covariate shift. A net that trains as well with
    this as with `batch` contradicts it.

    Reference: Santurkar 2018 (1805.11604), Algorithm 1 and its parameters.
    """
    from ics_apps.norms.batch import NoisyBatchNorm, batch_norm

    check_eps(eps)
    check_momentum(momentum)
    check_not_negative(n_mu=n_mu, r_mu=r_mu, r_sigma=r_sigma)
    if n_sigma < 1:
        raise NormError(f"n_sigma is the upper end of U(1, n_sigma) and must be at least 1, got {n_sigma}")
    norm = batch_norm(channels, dim, eps=eps, momentum=momentum)
    return NoisyBatchNorm(norm, dim, n_mu=n_mu, n_sigma=n_sigma, r_mu=r_mu, r_sigma=r_sigma)
