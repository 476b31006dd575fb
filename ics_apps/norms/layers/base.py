"""What our own norms share: affine parameters, running statistics, and the call of the engine in `moments`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.engine.moments import normalize, pooled
from ics_apps.norms.recompute import in_recompute
from ics_apps.norms.registry import Dim


class MomentNorm(nn.Module):
    """A norm whose scale and offset follow from the mean and variance of each sample's channels.

    A subclass writes `program`, see `moments.Program`; what it differentiates with respect to comes by `tensors`.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, num_features: int, dim: Dim, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.eps = eps
        self.affine = affine
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        y, _, _ = normalize(x, self.dim, self.program, *self.tensors())
        return y

    def tensors(self) -> tuple[Tensor, ...]:
        """Weight and bias, where there are any."""
        return tuple(t for t in (self.weight, self.bias) if t is not None)

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset, tables (B, C)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Channels and eps, as torch prints them."""
        return f"{self.num_features}, eps={self.eps}"


class BatchMomentNorm(MomentNorm):
    """A `MomentNorm` with statistics of the batch in training and running ones in evaluation.

    `running_var` stores the unbiased variance, as torch's batch norm does; `momentum` is the weight of the new batch.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float, affine: bool = True) -> None:
        super().__init__(num_features, dim, eps, affine)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training from the batch's moments, which also move the running ones.

        Raises:
            ValueError: In training, one value per channel.
        """
        return self.normalized(x, *self.tensors())

    def normalized(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """`forward` with given tensors for the program in place of `tensors()`."""
        if not self.training:
            return normalize(x, self.dim, self.eval_program, *tensors, *self.statistics())[0]
        refuse_single_values(x, self.num_features)
        y, mean, var = normalize(x, self.dim, self.program, *tensors)
        if not in_recompute():
            with torch.no_grad():
                self.observe(mean, var, x.numel() // (self.num_features * x.shape[0]))
        return y

    def statistics(self) -> tuple[Tensor, ...]:
        """What evaluation takes in place of the batch's moments."""
        return self.running_mean, self.running_var

    def eval_program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset in evaluation; the last of the tensors are `statistics`."""
        raise NotImplementedError

    def observe(self, mean: Tensor, var: Tensor, positions: int) -> None:
        """Move the running statistics by the moments (B, C) of a batch of `positions` values per sample and channel."""
        self.track(pooled(mean, var, 0), mean.shape[0] * positions)
        self.num_batches_tracked += 1

    def track(self, moments: tuple[Tensor, Tensor], count: int) -> None:
        """Move the running statistics towards one mean and biased variance (1, C) of `count` values."""
        mean, unbiased = moments[0][0], moments[1][0] * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def extra_repr(self) -> str:
        """Channels, eps and momentum, as torch prints them."""
        return f"{super().extra_repr()}, momentum={self.momentum}"


def refuse_single_values(x: Tensor, channels: int) -> None:
    """Refuse a training batch with one value per channel, whose variance is 0 whatever the value, or with none."""
    if x.numel() <= channels:
        raise ValueError(
            f"expected more than 1 value per channel when training, got input size {tuple(x.shape)}; let the data "
            "loader drop its last small batch (drop_last=True), or take a norm within one sample such as 'group'"
        )


def refuse_single_values_of_groups(x: Tensor, num_groups: int) -> None:
    """Refuse an input with one value in each group of each sample: the result would be the shift, whatever the value.

    `num_groups` C is instance norm.
    """
    if 0 < x.numel() == x.shape[0] * num_groups:
        raise ValueError(
            f"a norm within each of {num_groups} groups of channels needs more than one position, got input size "
            f"{tuple(x.shape)}; use a larger input, fewer poolings, or the norm 'group' with fewer groups"
        )


def affine_or_identity(weight: Tensor | None, bias: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, or ones and zeros in the shape of `like` for a norm without them."""
    if weight is None or bias is None:
        return torch.ones_like(like), torch.zeros_like(like)
    return weight, bias


def split_tensors(tensors: tuple[Tensor, ...], affine: bool) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, ...]]:
    """Weight, bias (None without affine) and the rest of a program's tensors."""
    return (tensors[0], tensors[1], tensors[2:]) if affine else (None, None, tensors)
