"""Entries of the mixed family: batch statistics together with statistics within a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ics_apps.norms.ranges import check_eps, check_momentum
from ics_apps.norms.registry import Dim, register_norm

if TYPE_CHECKING:
    from torch import nn


@register_norm(
    "switchable",
    family="mixed",
    pools=("N", "C", "S"),
    stateful=True,
    scale_invariant=True,
    absorbs_bias=True,
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
    from ics_apps.norms.mixed import SwitchableNorm

    check_eps(eps)
    check_momentum(momentum)
    return SwitchableNorm(channels, dim, eps, momentum)
