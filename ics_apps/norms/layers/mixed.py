"""Layers that mix statistics over the batch with statistics within a sample. Their names live in `catalog.mixed`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.moments import pooled, pooled_groups, standardized
from ics_apps.norms.layers.base import BatchMomentNorm
from ics_apps.norms.registry import Dim

Moments = tuple[Tensor, Tensor]


class _MixedNorm(BatchMomentNorm):
    """A norm whose evaluation differs from its training only in the batch's moments, for which running ones stand."""

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset with the moments of the batch."""
        return self.mixed(mean, var, pooled(mean, var, 0), *tensors)

    def eval_program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset with the running moments."""
        *own, running_mean, running_var = tensors
        return self.mixed(mean, var, (running_mean.unsqueeze(0), running_var.unsqueeze(0)), *own)

    def mixed(self, mean: Tensor, var: Tensor, batch: Moments, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset with given moments (1, C) of the batch."""
        raise NotImplementedError


class SwitchableNorm(_MixedNorm):
    """Learned mix of instance, layer and batch statistics.

    y = (x - sum_k w_k mu_k) / sqrt(sum_k w'_k v_k + eps) * weight + bias, w = softmax(mean_logits) and
    w' = softmax(var_logits), ordered (instance, layer, batch); features (dim 0) have no positions and mix the last two.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float) -> None:
        super().__init__(num_features, dim, eps, momentum)
        kinds = 2 if dim == 0 else 3
        self.mean_logits = nn.Parameter(torch.zeros(kinds))
        self.var_logits = nn.Parameter(torch.zeros(kinds))

    def tensors(self) -> tuple[Tensor, ...]:
        """Weight, bias and the logits of the two mixes."""
        return *super().tensors(), self.mean_logits, self.var_logits

    def mixed(self, mean: Tensor, var: Tensor, batch: Moments, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset of the mix."""
        weight, bias, mean_logits, var_logits = tensors
        parts = [(mean, var), pooled_groups(mean, var, 1), batch][-len(mean_logits) :]
        centre = _mix(mean_logits, [part[0] for part in parts])
        spread = _mix(var_logits, [part[1] for part in parts])
        return standardized(mean, centre, spread, weight, bias, self.eps)


class BlendedNorm(_MixedNorm):
    """y = (rho * batch + (1 - rho) * own) * weight + bias, with one learned rho a channel, cut to [0, 1].

    `own` is instance norm of the sample, or layer norm over its channels and positions.

    Args:
        num_features: C.
        dim: As in `make_norm`.
        eps: Added to each variance.
        momentum: Weight of the new batch.
        num_groups: Groups of the sample's own norm: C for instance, 1 for layer norm.
        rho: Start value of the gate.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float, num_groups: int, rho: float) -> None:
        super().__init__(num_features, dim, eps, momentum)
        self.num_groups = num_groups
        self.rho = nn.Parameter(torch.full((num_features,), rho))

    def tensors(self) -> tuple[Tensor, ...]:
        """Weight, bias and the gate."""
        return *super().tensors(), self.rho

    def mixed(self, mean: Tensor, var: Tensor, batch: Moments, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset of the blend."""
        weight, bias, gate = tensors
        # Cut here and not after the optimizer's step, where every training loop would have to remember it.
        rho = gate.clamp(0, 1)
        of_batch = standardized(mean, *batch, None, None, self.eps)
        of_sample = standardized(mean, *pooled_groups(mean, var, self.num_groups), None, None, self.eps)
        scale, offset = (rho * b + (1 - rho) * s for b, s in zip(of_batch, of_sample, strict=True))
        return scale * weight, offset * weight + bias


class BatchChannelNorm(_MixedNorm):
    """Group norm of the batch norm, which has its affine values per channel, the group norm per group.

    Both norms are affine for each sample's channel, so one pass does both: the moments behind the batch norm follow
    from those before it.
    """

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float, num_groups: int) -> None:
        super().__init__(num_features, dim, eps, momentum)
        self.num_groups = num_groups
        self.group_weight = nn.Parameter(torch.ones(num_groups))
        self.group_bias = nn.Parameter(torch.zeros(num_groups))

    def tensors(self) -> tuple[Tensor, ...]:
        """Affine values per channel, then per group."""
        return *super().tensors(), self.group_weight, self.group_bias

    def mixed(self, mean: Tensor, var: Tensor, batch: Moments, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset of both norms together."""
        weight, bias, *of_groups = tensors
        group_weight, group_bias = (t.repeat_interleave(self.num_features // self.num_groups) for t in of_groups)
        inner_scale, inner_mean = standardized(mean, *batch, weight, bias, self.eps)
        inner = pooled_groups(inner_mean, var * inner_scale.square(), self.num_groups)
        scale, offset = standardized(inner_mean, *inner, group_weight, group_bias, self.eps)
        return scale * inner_scale, offset

    def extra_repr(self) -> str:
        """Channels, eps, momentum and groups."""
        return f"{super().extra_repr()}, num_groups={self.num_groups}"


def _mix(logits: Tensor, parts: list[Tensor]) -> Tensor:
    first, *rest = [weight * part for weight, part in zip(logits.softmax(0).unbind(), parts, strict=True)]
    return sum(rest, first)
