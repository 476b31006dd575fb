"""Relatives of batch norm that pool other samples than the batch: chunks, a reference batch, domains; and renorm.

Their names live in `catalog.batch_like`; batch norm itself is in `batch`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.condition import check_ids, condition, optional_condition
from ics_apps.norms.distributed import in_group, merged_moments
from ics_apps.norms.engine.moments import channel_moments, normalize, pooled, standardized
from ics_apps.norms.engine.own_gradient import is_watched
from ics_apps.norms.layers.base import BatchMomentNorm, MomentNorm, refuse_single_values, split_tensors
from ics_apps.norms.recompute import in_recompute
from ics_apps.norms.registry import Dim, NormError


class RunningEvalNorm(BatchMomentNorm):
    """A batch-like norm whose evaluation is that of batch norm: (x - running_mean) / sqrt(running_var + eps)."""

    def eval_program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the running statistics."""
        weight, bias, (running_mean, running_var) = split_tensors(tensors, self.affine)
        return standardized(mean, running_mean, running_var, weight, bias, self.eps)


class GhostBatchNorm(RunningEvalNorm):
    """Batch norm of each chunk of `batch_size` samples; the running statistics move once a chunk, in order."""

    def __init__(self, num_features: int, dim: Dim, eps: float, momentum: float, affine: bool, batch_size: int) -> None:
        super().__init__(num_features, dim, eps, momentum, affine)
        self.batch_size = batch_size

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the moments of each sample's chunk."""
        weight, bias, _ = split_tensors(tensors, self.affine)
        chunks = [pooled(m, v, 0) for m, v in self._chunks(mean, var)]
        sizes = [m.shape[0] for m, _ in self._chunks(mean, var)]
        centre, spread = (
            torch.cat([moment.expand(n, -1) for moment, n in zip(moments, sizes, strict=True)])
            for moments in zip(*chunks, strict=True)
        )
        return standardized(mean, centre, spread, weight, bias, self.eps)

    def observe(self, mean: Tensor, var: Tensor, positions: int) -> None:
        """Move the running statistics by every chunk in turn: the k-th last weighs momentum * (1 - momentum)^(k-1)."""
        for chunk_mean, chunk_var in self._chunks(mean, var):
            self.track(pooled(chunk_mean, chunk_var, 0), chunk_mean.shape[0] * positions)
        self.num_batches_tracked += 1

    def _chunks(self, mean: Tensor, var: Tensor) -> list[tuple[Tensor, Tensor]]:
        size, total = self.batch_size, mean.shape[0]
        sizes = [size] * (total // size) + ([total % size] if total % size else [])
        # One sample alone has no batch: it joins the chunk before.
        if len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [sizes[-2] + 1]
        return list(zip(torch.split(mean, sizes), torch.split(var, sizes), strict=True))

    def extra_repr(self) -> str:
        """Channels, eps, momentum and the chunk's size."""
        return f"{super().extra_repr()}, batch_size={self.batch_size}"


class BatchRenorm(MomentNorm):
    """Batch norm corrected towards the running statistics by r and d, which are constants for the gradient.

    y = ((x - mean_B) / s_B * r + d) * weight + bias with s = sqrt(var + eps), r = clip(s_B / s, 1 / r_max, r_max) and
    d = clip((mean_B - mean) / s, -d_max, d_max). `running_std` holds s itself, not a variance.
    """

    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        dim: Dim,
        eps: float,
        momentum: float,
        affine: bool,
        *,
        limits: tuple[float, float],
        steps: tuple[int, int, int],
        sync: bool,
    ) -> None:
        super().__init__(num_features, dim, eps, affine)
        self.momentum = momentum
        self.r_max, self.d_max = limits
        self.warmup_steps, self.r_steps, self.d_steps = steps
        self.sync = sync
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_std", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training move the running mean and standard deviation.

        Raises:
            ValueError: In training, one value per channel.
        """
        # Clones: the gradient needs the values from before this step's update.
        running = (self.running_mean.clone(), self.running_std.clone())
        if not self.training:
            y, _, _ = normalize(x, self.dim, self.eval_program, *self.tensors(), *running)
            return y
        if not self._in_group():
            refuse_single_values(x, self.num_features)
        inputs = (*self.tensors(), *running, *self.limits(), *self._moments_of_all_ranks(x))
        y, mean, var = normalize(x, self.dim, self.program, *inputs)
        if not in_recompute():
            with torch.no_grad():
                self._observe(*(inputs[-2:] if self._in_group() else pooled(mean, var, 0)))
        return y

    def limits(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max of this step: 1 and 0 until `warmup_steps`, then linear to their ends."""
        # In the type of the buffers: a count would divide in float32.
        step = self.num_batches_tracked.to(self.running_std.dtype) - self.warmup_steps
        r = 1 + (self.r_max - 1) * (step / (self.r_steps - self.warmup_steps)).clamp(0, 1)
        d = self.d_max * (step / (self.d_steps - self.warmup_steps)).clamp(0, 1)
        return r, d

    def program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the batch's moments, r and d."""
        weight, bias, (running_mean, running_std, r_max, d_max, *given) = split_tensors(tensors, self.affine)
        batch_mean, batch_var = given or pooled(mean, var, 0)
        std = (batch_var + self.eps).sqrt()
        r = torch.clamp(std / running_std, 1 / r_max, r_max).detach()
        d = torch.clamp((batch_mean - running_mean) / running_std, -d_max, d_max).detach()
        scale = (r / std).expand_as(mean)
        offset = (mean - batch_mean) * scale + d
        return _with_affine(scale, offset, weight, bias)

    def eval_program(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset by the running mean and standard deviation."""
        weight, bias, (running_mean, running_std) = split_tensors(tensors, self.affine)
        scale = (1 / running_std).expand_as(mean)
        offset = (mean - running_mean) * scale
        return _with_affine(scale, offset, weight, bias)

    def extra_repr(self) -> str:
        """Channels, eps, momentum and the ends of the two limits."""
        return f"{super().extra_repr()}, momentum={self.momentum}, r_max={self.r_max}, d_max={self.d_max}"

    def _in_group(self) -> bool:
        return self.sync and in_group()

    def _moments_of_all_ranks(self, x: Tensor) -> tuple[Tensor, ...]:
        # Not in the program, which may run again in the backward pass, and then not on every rank as often.
        if not self._in_group():
            return ()
        positions = x.numel() // max(x.shape[0] * self.num_features, 1)
        if x.numel():
            mean, var = pooled(*channel_moments(x, self.dim), 0)
        else:
            # The sum keeps the input in the graph, so that this rank takes part in the backward pass's collectives.
            mean = var = x.sum().expand(1, self.num_features)
        mean, var, _ = merged_moments(mean, var, x.shape[0] * positions)
        return mean, var

    def _observe(self, mean: Tensor, var: Tensor) -> None:
        self.running_mean.lerp_(mean[0].to(self.running_mean.dtype), self.momentum)
        self.running_std.lerp_((var[0] + self.eps).sqrt().to(self.running_std.dtype), self.momentum)
        self.num_batches_tracked += 1


class VirtualBatchNorm(MomentNorm):
    """Each sample by its own moments mixed with those of a fixed reference batch, with weight 1 / (reference + 1).

    The first `reference` samples of the input are the reference batch; it is normalised by its own moments.
    """

    reference_mean: Tensor
    reference_var: Tensor
    reference_size: Tensor

    def __init__(self, num_features: int, dim: Dim, eps: float, affine: bool) -> None:
        super().__init__(num_features, dim, eps, affine)
        self.register_buffer("reference_mean", torch.zeros(num_features))
        self.register_buffer("reference_var", torch.ones(num_features))
        self.register_buffer("reference_size", torch.tensor(0))

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        """Normalise; without a reference in the input, by the moments that the last one left behind.

        Raises:
            NormError: There has never been a reference, or it is larger than the batch.
        """
        size = reference if reference is not None else optional_condition("reference")
        if size is None:
            return self._by_kept_reference(x)
        if not 1 <= size <= x.shape[0]:
            raise NormError(f"the reference is the first 1 to {x.shape[0]} samples of this batch, got {size}")

        def program(mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias, _ = split_tensors(tensors, self.affine)
            centre, spread = pooled(mean[:size], var[:size], 0)
            mixed = _mixture(mean[size:], var[size:], centre, spread, size)
            rows = (centre.expand(size, -1), spread.expand(size, -1))
            centres, spreads = (torch.cat(pair) for pair in zip(rows, mixed, strict=True))
            return standardized(mean, centres, spreads, weight, bias, self.eps)

        y, mean, var = normalize(x, self.dim, program, *self.tensors())
        if self.training and not in_recompute():
            centre, spread = pooled(mean[:size], var[:size], 0)
            self.reference_mean.copy_(centre[0])
            self.reference_var.copy_(spread[0])
            self.reference_size.fill_(size)
        return y

    def _by_kept_reference(self, x: Tensor) -> Tensor:
        size = self.reference_size.clone()
        # Reading it would break a compiled or exported graph.
        if not is_watched() and size == 0:
            condition("reference")  # tells how to give one

        def program(mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias, (centre, spread) = split_tensors(tensors, self.affine)
            centres, spreads = _mixture(mean, var, centre, spread, size)
            return standardized(mean, centres, spreads, weight, bias, self.eps)

        y, _, _ = normalize(x, self.dim, program, *self.tensors(), self.reference_mean, self.reference_var)
        return y


class DomainBatchNorm(MomentNorm):
    """Batch norm with statistics and affine values of its own for each of `num_domains` domains.

    Weight and bias are of shape (num_domains * C,), so that rules which spare vectors from weight decay spare them.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, dim: Dim, eps: float, momentum: float, affine: bool, num_domains: int
    ) -> None:
        super().__init__(num_features, dim, eps, affine)
        self.momentum = momentum
        self.num_domains = num_domains
        if affine:
            self.weight = nn.Parameter(torch.ones(num_domains * num_features))
            self.bias = nn.Parameter(torch.zeros(num_domains * num_features))
        self.register_buffer("running_mean", torch.zeros(num_domains, num_features))
        self.register_buffer("running_var", torch.ones(num_domains, num_features))

    def forward(self, x: Tensor, domain: Tensor | None = None) -> Tensor:
        """Normalise each sample with its domain, int64 (B,).

        Raises:
            NormError: No domain given, of the wrong shape or out of range.
            ValueError: In training, a domain with one value per channel in this batch.
        """
        ids = check_ids("domain", condition("domain", domain), x.shape[0], self.num_domains, "num_domains").to(x.device)
        positions = x.numel() // max(x.shape[0] * self.num_features, 1)
        if self.training:
            refuse_single_values(x, self.num_features)
        if self.training and positions == 1 and (torch.bincount(ids) == 1).any():
            raise ValueError(
                f"expected more than 1 value per channel and domain when training, got input size {tuple(x.shape)} and "
                f"domains {torch.bincount(ids).tolist()}; draw batches with at least two samples of each domain present"
            )

        def affine(tensors: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
            weight, bias, _ = split_tensors(tensors, self.affine)
            shape = (self.num_domains, self.num_features)
            return tuple(None if t is None else t.view(shape)[ids] for t in (weight, bias))

        def by_batch(mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            centre, spread = self._domain_moments(mean, var, ids)
            weight, bias = affine(tensors)
            return standardized(mean, centre[ids], spread[ids], weight, bias, self.eps)

        def by_running(mean: Tensor, _: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            centre, spread = tensors[-2:]
            weight, bias = affine(tensors)
            return standardized(mean, centre[ids], spread[ids], weight, bias, self.eps)

        if not self.training:
            return normalize(x, self.dim, by_running, *self.tensors(), self.running_mean, self.running_var)[0]
        y, mean, var = normalize(x, self.dim, by_batch, *self.tensors())
        if not in_recompute():
            self._observe(mean, var, ids, positions)
        return y

    def extra_repr(self) -> str:
        """Channels, eps, momentum and the number of domains."""
        return f"{super().extra_repr()}, momentum={self.momentum}, num_domains={self.num_domains}"

    def _domain_moments(self, mean: Tensor, var: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (num_domains, C) of the samples of each domain; domains that are absent get zeros."""
        count = torch.bincount(ids, minlength=self.num_domains).clamp(min=1).unsqueeze(1)
        none = mean.new_zeros(self.num_domains, self.num_features)
        # About the mean of all, so that the sums run over small numbers. Not as a product of matrices, which autocast
        # would take in bfloat16.
        middle = mean.mean(0)
        centre = middle + none.index_add(0, ids, mean - middle) / count
        return centre, none.index_add(0, ids, var + (mean - centre[ids]).square()) / count

    @torch.no_grad()
    def _observe(self, mean: Tensor, var: Tensor, ids: Tensor, positions: int) -> None:
        centre, spread = self._domain_moments(mean, var, ids)
        # In the type of the buffers: counts would divide in float32.
        samples = torch.bincount(ids, minlength=self.num_domains).to(self.running_var.dtype)
        count = samples.unsqueeze(1) * positions
        unbiased = spread * (count / (count - 1).clamp(min=1))
        speed = self.momentum * (count > 0).to(self.running_mean.dtype)
        self.running_mean.lerp_(centre.to(self.running_mean.dtype), speed)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), speed)


def _with_affine(scale: Tensor, offset: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    if weight is not None:
        scale, offset = scale * weight, offset * weight
    return scale, offset if bias is None else offset + bias


def _mixture(mean: Tensor, var: Tensor, centre: Tensor, spread: Tensor, size: int | Tensor) -> tuple[Tensor, Tensor]:
    """Moments of each sample together with the reference, its weight being 1 / (size + 1); without cancellation."""
    # In the type of the moments: a count would divide in float32.
    own = 1 / (size + mean.new_ones(()))
    joint = own * mean + (1 - own) * centre
    return joint, own * (var + (mean - joint).square()) + (1 - own) * (spread + (centre - joint).square())
