"""Entries of the batch family that pool other samples than the batch at hand, or correct its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.ranges import check_at_least, check_eps, check_momentum
from ics_apps.norms.registry import Dim, NormError, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "ghost_batch",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Hoffer 2017 (1705.08741), Algorithm 1",
)
def ghost_batch(
    channels: int,
    *,
    dim: Dim,
    batch_size: int = 32,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = True,
) -> nn.Module:
    """Ghost batch norm: batch norm of each chunk of `batch_size` samples, so that a large batch is as noisy as a small.

    y = (x - mean_k) / sqrt(var_k + eps) * weight + bias, k the chunk of the sample. A last chunk may be smaller; a last
    single sample joins the chunk before it. Evaluation takes the running statistics.

    When to use: large batches that generalise worse than small ones did. 2007.08554 reports that it makes the loss
    landscape less smooth than batch norm does and still generalises better.

    Options: `momentum` is the weight of one chunk. The running statistics move once a chunk, in order; the weights
    printed in the paper do not sum to 1 (0.966 for 4 chunks and momentum 0.1), so they are not followed.

    Reference: Hoffer 2017 (1705.08741), Algorithm 1.
    """
    from ics_apps.norms.layers.batch_like import GhostBatchNorm

    check_eps(eps)
    check_momentum(momentum)
    check_at_least(2, batch_size=batch_size)
    return GhostBatchNorm(channels, dim, eps, momentum, affine, batch_size)


@register_norm(
    "batch_renorm",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Ioffe 2017 (1702.03275), Algorithm 1",
)
def batch_renorm(
    channels: int,
    *,
    dim: Dim,
    eps: float = 1e-5,
    momentum: float = 0.01,
    affine: bool = True,
    r_max: float = 3.0,
    d_max: float = 5.0,
    warmup_steps: int = 5000,
    r_steps: int = 40000,
    d_steps: int = 25000,
    sync: bool = False,
) -> nn.Module:
    """Batch renorm: batch norm whose training output is corrected towards what evaluation will compute.

    y = ((x - mean_B) / s_B * r + d) * weight + bias with s = sqrt(var + eps), r = clip(s_B / s, 1 / r_max, r_max) and
    d = clip((mean_B - mean) / s, -d_max, d_max); mean and s are running values. r and d are constants for the gradient,
    so what differentiation gives is by design not the slope of the value once they leave 1 and 0.

    When to use: small batches, or batches whose samples are not drawn independently. Until `warmup_steps` it is batch
    norm; then the limits open linearly, r_max until `r_steps` and d_max until `d_steps`.

    Options: `momentum` is the weight of the NEW batch (the paper's alpha). `sync` takes the moments of all ranks. The
    buffer `running_std` holds the standard deviation; many ports keep a variance and clip its ratio instead.

    Reference: Ioffe 2017 (1702.03275), Algorithm 1 and section 4.
    """
    from ics_apps.norms.layers.batch_like import BatchRenorm

    check_eps(eps)
    check_momentum(momentum)
    check_at_least(1, r_max=r_max)
    check_at_least(0, d_max=d_max, warmup_steps=warmup_steps)
    check_at_least(warmup_steps + 1, r_steps=r_steps, d_steps=d_steps)
    steps = (warmup_steps, r_steps, d_steps)
    return BatchRenorm(channels, dim, eps, momentum, affine, limits=(r_max, d_max), steps=steps, sync=sync)


@register_norm(
    "virtual_batch",
    family="batch",
    pools=("S",),
    stateful=True,
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Salimans 2016 (1606.03498), section 3.2",
)
def virtual_batch(channels: int, *, dim: Dim, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Virtual batch norm: each sample by its own moments mixed with those of a fixed reference batch.

    The joint moments of sample and reference, the sample weighing 1 / (R + 1) for R reference samples;
    y = (x - mean) / sqrt(var + eps) * weight + bias. The reference is normalised by its own moments.

    When to use: GAN generators and discriminators: samples of a batch do not see each other, yet share a scale. Costs
    one more forward of the reference each step.

    How: put the reference in front of each batch, `with norm_context(reference=R): y = net(cat([reference, x]))[R:]`.
    Without a context the moments of the last reference in training serve, as in evaluation. Refused before the first.
    Scale invariant only while the reference is forwarded along.

    Reference: Salimans 2016 (1606.03498), section 3.2; the authors' code mixes means of squares, which cancels.
    """
    from ics_apps.norms.layers.batch_like import VirtualBatchNorm

    check_eps(eps)
    return VirtualBatchNorm(channels, dim, eps, affine)


@register_norm(
    "batch_per_domain",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    needs_condition=True,
    absorbs_bias=True,
    thrice_differentiable=True,
    reference="Chang 2019 (1906.03950)",
)
def batch_per_domain(
    channels: int,
    *,
    dim: Dim,
    num_domains: int = 2,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = True,
) -> nn.Module:
    """Batch norm with statistics and affine values of its own for each domain.

    y = (x - mean_d) / sqrt(var_d + eps) * weight_d + bias_d, d the domain of the sample; moments over the samples of d
    in the batch. Evaluation takes the running statistics of d.

    When to use: scanners, batches of an assay, sites, with at least a few samples of each in a batch. A sample of a
    domain that was not trained has no statistics: re-estimate them (see `recompute_statistics`) or take a per-sample
    norm.

    How: `with norm_context(domain=ids): y = net(x)`, ids int64 (B,); or `norm(x, ids)`.

    Reference: Chang 2019 (1906.03950).
    """
    from ics_apps.norms.layers.batch_like import DomainBatchNorm

    check_eps(eps)
    check_momentum(momentum)
    check_at_least(1, num_domains=num_domains)
    return DomainBatchNorm(channels, dim, eps, momentum, affine, num_domains)


@register_norm(
    "lp_batch",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
    reference="Hoffer 2018 (1803.01814), section 5",
)
def lp_batch(
    channels: int, *, dim: Dim, p: str = "l1", eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
) -> nn.Module:
    """Batch norm by another measure of spread than the variance: the mean or the largest absolute deviation.

    y = (x - mean) / (spread + eps) * weight + bias, over all m samples and positions of a channel:

    l1: spread = sqrt(pi / 2) * mean |x - mean|, which is sigma for Gaussian values.
    l2: spread = sqrt(var), as batch norm (up to where eps stands).
    linf: spread = (1 + sqrt(pi ln 4)) / sqrt(8 ln m) * max |x - mean|; for Gaussian values 1.4 sigma, not sigma.

    When to use: low-precision hardware, where sums of squares overflow; or to test what the variance has to do with it.
    l1 and linf have kinks: their second derivatives miss what happens there. Santurkar 2018's l_p norm is another one:
    it divides by a norm taken before centring.

    Options: `p` is l1, l2 or linf.

    Reference: Hoffer 2018 (1803.01814), section 5.
    """
    from ics_apps.norms.layers.lp import LpBatchNorm

    check_eps(eps)
    check_momentum(momentum)
    if p not in ("l1", "l2", "linf"):
        raise NormError(f"p must be 'l1', 'l2' or 'linf', got {p!r}")
    return LpBatchNorm(channels, dim, eps, momentum, affine, p)


@register_norm(
    "power_norm",
    family="batch",
    pools=("N", "S"),
    stateful=True,
    scale_invariant=False,
    reference="Shen 2020 (2003.07845)",
)
def power_norm(
    channels: int,
    *,
    dim: Dim,
    eps: float = 1e-5,
    momentum: float = 0.1,
    backward_momentum: float = 0.1,
    warmup_steps: int = 10000,
    affine: bool = True,
) -> nn.Module:
    """Power norm: division by a running quadratic mean, without centring; its backward pass is no gradient by design.

    y = x / sqrt(psi^2 + eps) * weight + bias, psi^2 the running mean of x^2 per channel (during the warm-up: that of
    the batch). Backward, with z the normalised value and nu a running sum of mean((g - momentum_b * nu * z) z):
    dx = (g - momentum_b * nu * z) / sqrt(psi_B^2 + eps), psi_B^2 of the batch.

    When to use: transformers on text, where batch statistics fluctuate too much for batch norm. gradcheck fails after
    the warm-up: gradients through the running mean are replaced by the running correction nu.

    Options: both momenta are weights of the NEW batch (the paper's 1 - alpha). The group scaling that the authors' code
    puts before it is another layer and not part of this one.

    Reference: Shen 2020 (2003.07845), Algorithms 1 and 2.
    """
    from ics_apps.norms.layers.power import PowerNorm

    check_eps(eps)
    check_momentum(momentum)
    check_momentum(backward_momentum)
    check_at_least(0, warmup_steps=warmup_steps)
    return PowerNorm(channels, dim, eps, (momentum, backward_momentum), warmup_steps, affine)
