"""Batch norm with its traps closed, pooled over ranks on demand, and the forms of it that are frozen or noisy.

Their names live in `catalog.batch`. What re-estimates running statistics is in `statistics`, what ranks exchange in
`distributed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ics_apps.norms.distributed import in_group, merged_moments
from ics_apps.norms.engine.axes import channel_shape, widened
from ics_apps.norms.engine.kernels import MOST_IN_CHANNELS_LAST, MOST_IN_ROWS, lost_digits, reveals_moments
from ics_apps.norms.engine.moments import normalize, pooled, standardized
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.engine.scaling import broadcast
from ics_apps.norms.layers.base import split_tensors
from ics_apps.norms.recompute import in_recompute
from ics_apps.norms.registry import Dim

SmallBatch = Literal["refuse", "running"]


class BatchNormBase(_BatchNorm):
    """What every batch norm here does beyond torch's, by torch's kernel and with torch's state.

    * Running statistics do not move while activation checkpointing recomputes a forward pass (torch's move twice).
    * A training batch with fewer than `min_count` values per channel is refused with the choices there are, or
      (`small_batch="running"`) normalised by the running statistics, which it leaves as they are.
    * Where torch's kernel loses digits, beside a mean of many sigma, the engine of `moments` takes over; with
      `by_engine` set it does always, and derivatives of every order are right.
    * With `sync=True` several processes pool their batches, which may be of different sizes or empty.

    Args:
        num_features: C. This and the following are those of `nn.BatchNorm2d`.
        eps: Added to the variance.
        momentum: Weight of the new batch; None for the plain average of all.
        affine: Learn a weight and a bias.
        track_running_stats: Keep running statistics.
        device: Of the parameters and buffers.
        dtype: Of the parameters and buffers.
        small_batch: "refuse" or "running".
        min_count: Values per channel, N * S over all ranks, below which a batch is small; >= 2.
        sync: Take the statistics over all ranks.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        small_batch: SmallBatch = "refuse",
        min_count: int = 2,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.small_batch = small_batch
        self.min_count = min_count
        self.sync = sync
        self.by_engine = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (B, C, *S).

        Raises:
            ValueError: In training, fewer than `min_count` values per channel, unless `small_batch` is "running".
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        count = input.numel() // max(input.shape[1], 1)
        if self.sync and in_group():
            return self._forward_in_group(input, count)
        if count < self.min_count:
            return self._forward_small(input, count)
        if self.by_engine or reveals_moments(input):
            return self._forward_checked(input)
        return self._forward_again(input) if in_recompute() else super().forward(input)

    def extra_repr(self) -> str:
        """Torch's, and what was changed from its behaviour."""
        changed = {"small_batch": "refuse", "min_count": 2, "sync": False}
        own = [f"{k}={getattr(self, k)!r}" for k, default in changed.items() if getattr(self, k) != default]
        return ", ".join([super().extra_repr(), *own])  # type: ignore[no-untyped-call]

    def _forward_checked(self, x: Tensor) -> Tensor:
        """By torch's kernel, or by the engine of `moments` where the kernel has lost digits or must not be used."""
        if self.by_engine:
            return self._by_engine(x)
        # The kernel moves copies: checkpointing counts the tensors that a forward pass saves, so there are some in its
        # second pass as well, and what a kernel moved by lost digits is not kept.
        buffers = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        mean, var = (None if buffer is None else buffer.clone() for buffer in buffers)
        y, batch_mean, rstd = torch.native_batch_norm(
            x, self.weight, self.bias, mean, var, True, self._update_weight(), self.eps
        )
        in_rows = x.is_contiguous() or x.dim() == 2
        if lost_digits(batch_mean, rstd, MOST_IN_ROWS if in_rows else MOST_IN_CHANNELS_LAST["batch"]):
            return self._by_engine(x)
        if not in_recompute():
            with torch.no_grad():
                for buffer, moved in zip(buffers, (mean, var), strict=True):
                    if buffer is not None and moved is not None:
                        buffer.copy_(moved)
                if self.track_running_stats and self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        return y

    def _by_engine(self, x: Tensor) -> Tensor:
        affine = tuple(t for t in (self.weight, self.bias) if t is not None)
        y, mean, var = normalize(x, x.dim() - 2, self._program, *affine)
        if self.track_running_stats and not in_recompute():
            joint_mean, joint_var = (moment[0] for moment in pooled(mean, var, 0))
            count = joint_var.new_tensor(x.numel() // self.num_features)
            self._update_running(joint_mean, joint_var, count)
        return y

    def _program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, _ = split_tensors(tensors, self.affine)
        return standardized(mean, *pooled(mean, var, 0), weight, bias, self.eps)

    def _update_weight(self) -> float:
        """Weight of the next batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1 / (int(self.num_batches_tracked) + 1)

    def _forward_again(self, x: Tensor) -> Tensor:
        # Copies take the update: checkpointing counts the tensors that a forward pass saves, so there have to be some.
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        mean, var = (None if buffer is None else buffer.clone() for buffer in (mean, var))
        return F.batch_norm(x, mean, var, self.weight, self.bias, True, 0.0, self.eps)

    def _forward_small(self, x: Tensor, count: int) -> Tensor:
        if self.small_batch == "refuse":
            ranks = " on all ranks together" if self.sync and in_group() else ""
            raise ValueError(
                f"batch norm needs more than {self.min_count - 1} value{'s' * (self.min_count > 2)} per channel in "
                f"training, got {count}{ranks} from an input of size {tuple(x.shape)}; give the data loader "
                "drop_last=True, take a norm within each sample such as 'group', or the running statistics for such "
                "batches: {'name': 'batch', 'small_batch': 'running'}"
            )
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _forward_in_group(self, x: Tensor, count: int) -> Tensor:
        values = widened(x)
        mean, var, total = merged_moments(*_moments(values), count)
        # A rank whose own batch is large enough need not wait for the total to reach the host; one that has to look
        # finds the same small total as every other rank, for they all had to look.
        if count < self.min_count and (pooled := round(total[0].item())) < self.min_count:
            return self._forward_small(x, pooled)
        if self.track_running_stats and not in_recompute():
            self._update_running(mean.detach(), var.detach(), total)
        shape = channel_shape(self.num_features, x.dim() - 2)
        scale = torch.rsqrt(var + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        y = (values - mean.view(shape)) * scale.view(shape)
        return (y if self.bias is None else y + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        weight = self._update_weight()
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), weight)


class BatchNorm1d(BatchNormBase, nn.BatchNorm1d):
    """Batch norm of features (B, C) or (B, C, S); see `BatchNormBase`."""


class BatchNorm2d(BatchNormBase, nn.BatchNorm2d):
    """Batch norm of images (B, C, *S); see `BatchNormBase`."""


class BatchNorm3d(BatchNormBase, nn.BatchNorm3d):
    """Batch norm of volumes (B, C, *S); see `BatchNormBase`."""


class TokenBatchNorm(BatchNormBase):
    """Batch norm of tokens (B, L, C): each channel over all tokens of all samples; see `BatchNormBase`."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.dim() != 2:
            raise ValueError(f"expected tokens (B, L, C), got {input.dim() + 1} axes")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise tokens of shape (B, L, C)."""
        # (B * L, C) is a view, and torch's kernel pools its first axis.
        return super().forward(input.flatten(0, 1)).reshape(input.shape)


_BATCH_NORMS: Mapping[Dim, type[BatchNormBase]] = {0: BatchNorm1d, 1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}


def batch_norm(channels: int, dim: Dim, **options: Any) -> BatchNormBase:
    """Batch norm of the right rank; options are those of `BatchNormBase`."""
    return _BATCH_NORMS.get(dim, TokenBatchNorm)(channels, **options)


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine values are constants: x -> (x - mean) / sqrt(var + eps) * weight + bias.

    All four are buffers of shape (C,), named as in torch's batch norm, so a batch norm's state loads into it.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, dim: Dim, eps: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the constant map; the same in training and evaluation."""
        state = (self.running_mean, self.running_var, self.weight, self.bias)
        return by_rule(Rule(self._map, lambda *inputs: (self._map(*inputs), ()), self._gradients), x, *state)

    def _map(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = x.flatten(0, 1) if self.dim == "tokens" else x
        return F.batch_norm(rows, mean, var, weight, bias, False, 0.0, self.eps).reshape(x.shape)

    def _gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], _: tuple[Tensor, ...], wanted: Wanted
    ) -> Gradients:
        _x, _mean, var, weight, _bias = inputs
        scale = weight * torch.rsqrt(var + self.eps)
        return (gradient * broadcast(scale.to(gradient.dtype), self.dim), None, None, None, None)

    def extra_repr(self) -> str:
        """Channels and eps, as torch prints them."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Batch norm's counter has no meaning here, and would be refused as an unexpected key.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NoisyBatchNorm(nn.Module):
    """Batch norm followed, in training, by noise whose mean and scale jump at every step: y -> s * y + m.

    Per step and channel c, mu_c ~ U(-n_mu, n_mu) and sigma_c ~ U(1, n_sigma); then per sample and position
    m ~ U(mu_c - r_mu, mu_c + r_mu) and s ~ N(sigma_c, r_sigma).
    """

    def __init__(
        self,
        norm: _BatchNorm,
        dim: Dim,
        *,
        n_mu: float,
        n_sigma: float,
        r_mu: float,
        r_sigma: float,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.dim = dim
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training add the noise."""
        y: Tensor = self.norm(x)
        if not self.training:
            return y
        scale, shift = self.draw(y)
        return torch.addcmul(shift, y, scale)

    def draw(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step's noise for values `y`: the scale s and the shift m, both of its shape."""
        shape = channel_shape(self.norm.num_features, self.dim)
        mean = (2 * torch.rand(shape, dtype=y.dtype, device=y.device) - 1) * self.n_mu
        spread = 1 + torch.rand(shape, dtype=y.dtype, device=y.device) * (self.n_sigma - 1)
        shift = mean + (2 * torch.rand_like(y) - 1) * self.r_mu
        scale = spread + torch.randn_like(y) * self.r_sigma
        return scale, shift

    def extra_repr(self) -> str:
        """The four widths of the noise."""
        return f"n_mu={self.n_mu}, n_sigma={self.n_sigma}, r_mu={self.r_mu}, r_sigma={self.r_sigma}"


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of (B, C, *S); zeros of the same graph where there are no values."""
    axes = (0, *range(2, x.dim()))
    if x.numel() == 0:
        # Torch warns of the variance of nothing. The sum keeps the input in the graph, so that this rank takes part in
        # the collectives of the backward pass.
        nothing = x.sum(axes)
        return nothing, nothing
    var, mean = torch.var_mean(x, axes, correction=0)
    return mean, var
