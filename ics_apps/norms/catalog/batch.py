"""Entries of the batch family: over one process and over all of them, the frozen form, and batch norm with noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.nearest import did_you_mean
from ics_apps.norms.options import NormError
from ics_apps.norms.ranges import check_eps, check_momentum, check_not_negative
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn

_SMALL_BATCH = ("refuse", "running")


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
    small_batch: str = "refuse",
    min_count: int = 2,
) -> nn.Module:
    """Batch norm: each channel over all samples and positions of the batch.

    y = (x - mean) / sqrt(var + eps) * weight + bias; training takes the batch's mean and biased variance, evaluation
    the running ones. The running variance stores the unbiased value, so evaluation on the same batch differs by
    sqrt((m - 1) / m), m the number of values per channel.

    When to use: batches of 16 or more that look like the test data. Small batches make the statistics noisy (with m
    independent values the mean errs by sigma / sqrt(m)); a shifted test set makes the running ones wrong.

    Traps: the last batch of an epoch may be small. One value per channel is refused; of two, the larger becomes +1 and
    the smaller -1, whatever they are. Under gradient accumulation each micro-batch has its own statistics and moves the
    running ones. Torch's kernel refuses third derivatives. Where torch moves the running statistics twice, under
    activation checkpointing, this moves them once.

    Options: `momentum` is the weight of the NEW batch (Keras and Flax: of the old); null averages all batches equally.
    A training batch with fewer than `min_count` values per channel is refused (`small_batch: refuse`) or normalised by
    the running statistics, which it does not change (`running`).

    Reference: Ioffe & Szegedy 2015 (1502.03167).
    """
    from ics_apps.norms.layers.batch import batch_norm

    check_eps(eps)
    check_momentum(momentum)
    _check_small_batch(small_batch, min_count, track_running_stats)
    return batch_norm(
        channels,
        dim,
        eps=eps,
        momentum=momentum,
        affine=affine,
        track_running_stats=track_running_stats,
        small_batch=small_batch,
        min_count=min_count,
    )


@register_norm(
    "sync_batch",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    reference="Ioffe & Szegedy 2015 (1502.03167); over processes as torch's SyncBatchNorm",
)
def sync_batch(
    channels: int,
    *,
    dim: Dim,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    small_batch: str = "refuse",
    min_count: int = 2,
) -> nn.Module:
    """Batch norm over the batches of all processes: each channel over all samples and positions on all ranks.

    n = sum_r n_r, mean = sum_r n_r mean_r / n, var = sum_r n_r (var_r + (mean_r - mean)^2) / n over the ranks r, then
    y = (x - mean) / sqrt(var + eps) * weight + bias. In a single process this is `batch`, by the same kernel.

    When to use: several processes with few samples each (detection, segmentation, 3-D), where each one's own statistics
    would be noisy. Batches of different sizes are weighted rightly, and a rank may have none; the running statistics
    are the same on all ranks. Works on CPUs (gloo), where torch's SyncBatchNorm refuses.

    Traps: every rank has to run forward and backward equally often, or the others wait for ever. One collective in each
    direction and layer. It pools the default process group. Lightning's `sync_batchnorm: true` puts torch's layer in
    the place of this one.

    Options: as for `batch`; `min_count` counts the values of all ranks.

    Reference: Ioffe & Szegedy 2015 (1502.03167); merging of the parts: Chan, Golub & LeVeque 1979.
    """
    from ics_apps.norms.layers.batch import batch_norm

    check_eps(eps)
    check_momentum(momentum)
    _check_small_batch(small_batch, min_count, track_running_stats)
    return batch_norm(
        channels,
        dim,
        eps=eps,
        momentum=momentum,
        affine=affine,
        track_running_stats=track_running_stats,
        small_batch=small_batch,
        min_count=min_count,
        sync=True,
    )


@register_norm(
    "batch_frozen",
    family="batch",
    pools=(),
    scale_invariant=False,
    thrice_differentiable=True,
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
    from ics_apps.norms.layers.batch import FrozenBatchNorm

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
    from ics_apps.norms.layers.batch import NoisyBatchNorm, batch_norm

    check_eps(eps)
    check_momentum(momentum)
    check_not_negative(n_mu=n_mu, r_mu=r_mu, r_sigma=r_sigma)
    if n_sigma < 1:
        raise NormError(f"n_sigma is the upper end of U(1, n_sigma) and must be at least 1, got {n_sigma}")
    norm = batch_norm(channels, dim, eps=eps, momentum=momentum)
    return NoisyBatchNorm(norm, dim, n_mu=n_mu, n_sigma=n_sigma, r_mu=r_mu, r_sigma=r_sigma)


def _check_small_batch(small_batch: str, min_count: int, track_running_stats: bool) -> None:
    if small_batch not in _SMALL_BATCH:
        hint = did_you_mean(small_batch, _SMALL_BATCH)
        raise NormError(f"small_batch is 'refuse' or 'running', got {small_batch!r}{hint}")
    if min_count < 2:
        raise NormError(f"min_count must be at least 2, as one value has no variance; got {min_count}")
    if small_batch == "running" and not track_running_stats:
        raise NormError("small_batch='running' needs the running statistics that track_running_stats=False leaves out")
