"""Running statistics from outside the layers: re-estimate a whole model's, foresee a last batch that spoils them.

How a layer gathers its own while it trains is in `batch` and `mixed`; when to re-estimate, in `callbacks`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel

from ics_apps.norms.distributed import all_reduce_sum, merged_moments
from ics_apps.norms.layers.batch import TokenBatchNorm

Forward = Callable[[nn.Module, Any], object]
"""Runs a model on a batch; what it returns is not looked at."""

FEW_SAMPLES: Final = 8
"""Below this many samples batch norm loses accuracy (Wu & He 2018, 1803.08494: ResNet-50 errs on 24.8 % of ImageNet
with 8 images a worker, 27.3 % with 4, 34.7 % with 2, against 23.6 % with 32)."""


@dataclass(frozen=True)
class StatisticsReport:
    """What `recompute_statistics` did.

    Attributes:
        batches: Batches that were run, on all ranks together.
        values: For each layer re-estimated, the number of values per channel that its statistics now stand for.
        skipped: For each layer left as it was, why.
    """

    batches: int
    values: dict[str, int]
    skipped: dict[str, str]


def recompute_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int | None = None,
    forward: Forward | None = None,
    blend: float = 1.0,
) -> StatisticsReport:
    """Replace the running statistics of a model by the exact ones of the given batches.

    mean = sum_b m_b mean_b / M, var = sum_b m_b (var_b + (mean_b - mean)^2) / (M - 1) over the batches b of all ranks,
    with m_b values per channel and M = sum_b m_b; merged in float64, without cancellation. A moving average remembers
    the last few batches, of which each met other weights; this weighs all values alike, at the present weights. Batches
    may be of different sizes, ranks may have different numbers of them or none, a layer may be called several times.

    It is one pass with batch-normalised inputs: a layer sees what the layers before it make of the batch by the batch's
    own statistics, as in training (in evaluation it will see their running ones). Batches as large as in training fit.
    `sync_batch` normalises by this rank's batch here, as ranks need not run in step. All else is in evaluation mode:
    dropout is off, noise too.

    Re-estimated are layers with a buffer `running_var`, and `running_mean` if there is one, of one value per channel.
    All other buffers (counters), the modes, the parameters and the random generators of torch, numpy and Python are as
    before. After an error everything is as before.

    On data of another domain this is AdaBN (Li 2016); `blend` mixes as in Schneider 2020.

    Args:
        model: Any module, compiled or wrapped in DistributedDataParallel or not.
        batches: Its inputs, a data loader or any iterable; on each rank that rank's own. A progress bar is the
            caller's.
        max_batches: The most batches to take, on each rank; None for all, else >= 1.
        forward: Called as `forward(model, batch)` without gradients. By default `model(x)` for a tensor x or a tuple or
            list that begins with one, moved to the model's device.
        blend: Weight in (0, 1] of the new moments against the present ones: (1 - blend) * old + blend * new, for mean
            and variance alike.

    Returns:
        What was re-estimated from how many values, and what was not and why.

    Raises:
        ValueError: No batch at all, a batch that needs `forward`, no layer that a batch reached, statistics that are
            not finite, or `max_batches` or `blend` out of range.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> recompute_statistics(layer, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
        StatisticsReport(batches=2, values={'': 3}, skipped={})
        >>> layer.running_mean, layer.running_var
        (tensor([3.]), tensor([7.]))

    Reference: Wu & Johnson 2021 (2105.07576), section 3; AdaBN: Li 2016 (1603.04779); blend: Schneider 2020
    (2006.16971).
    """
    if not 0 < blend <= 1:
        raise ValueError(f"blend is the weight of the new moments and lies in (0, 1], got {blend}")
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches is None or at least 1, got {max_batches}")
    model = _unwrapped(model)
    layers, skipped = _layers(model)
    if not layers:
        return StatisticsReport(0, {}, skipped)
    estimates = {name: _Estimate(module) for name, module in layers.items()}
    with _evaluating(model), _randomness_kept(), torch.no_grad(), _statistics_kept(layers.values()):
        handles = [
            module.register_forward_pre_hook(estimates[name].see, with_kwargs=True) for name, module in layers.items()
        ]
        try:
            own = _run(model, batches, max_batches, forward or _forward)
        finally:
            for handle in handles:
                handle.remove()
    ran = round(all_reduce_sum(torch.tensor(float(own), device=_device(model))).item())
    if ran == 0:
        raise ValueError("there was no batch to take statistics from; give at least one")
    values = _merge(estimates)
    for name in [name for name, count in values.items() if count == 0]:
        skipped[name] = "no batch reached it"
        del values[name]
    _check(values, estimates)
    with torch.no_grad():
        for name in values:
            estimates[name].store(blend)
    return StatisticsReport(ran, values, skipped)


def last_batch_problem(num_samples: int, batch_size: int, model: nn.Module) -> str | None:
    """What the small last batch of each epoch will do to layers that pool samples; None if there is nothing to say.

    The last batch weighs as much in the running statistics as any other, and validation follows right after it.

    Args:
        num_samples: Samples of an epoch on one rank, of a loader that keeps its last batch.
        batch_size: Samples of a full batch on one rank.
        model: Its layers in training mode decide; frozen ones and those with `small_batch="running"` are well.

    Example:
        >>> last_batch_problem(33, 16, nn.BatchNorm1d(4))  # doctest: +ELLIPSIS
        "the last batch of an epoch has 1 of 16 samples, and 1 layer that pools samples will take its statistics ..."
        >>> last_batch_problem(32, 16, nn.BatchNorm1d(4)) is None
        True
    """
    last = num_samples % batch_size
    if not 0 < last < min(FEW_SAMPLES, batch_size) or last > batch_size // 2:
        return None
    names = [
        name
        for name, module in model.named_modules()
        if module.training and _pools_samples(module) and getattr(module, "small_batch", "refuse") == "refuse"
    ]
    if not names:
        return None
    layers = "1 layer that pools samples" if len(names) == 1 else f"{len(names)} layers that pool samples"
    where = f" (first: {names[0]})" if names[0] else ""
    whose = "its" if len(names) == 1 else "their"
    worst = {
        1: "; with one position a sample that is an error",
        2: "; with one position a sample that gives +-1 whatever the input",
    }
    return (
        f"the last batch of an epoch has {last} of {batch_size} samples, and {layers}{where} will take {whose} "
        f"statistics from them{worst.get(last, '')}; give the train loader drop_last=True, another batch size, or "
        "the norm {'name': 'batch', 'small_batch': 'running', 'min_count': ...}"
    )


class _Estimate:
    """Joint moments of all inputs that one layer has seen, in float64 on the device of its buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.count = 0
        self.mean = _wide(_buffers(module)["running_var"]).new_zeros(_channels(module))
        self.var = self.mean.clone()

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the moments of an input, and let the layer normalise by them: evaluation takes the running ones."""
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if x is None or x.numel() == 0:
            return
        axis = _channel_axis(module)
        var, mean = torch.var_mean(_wide(x), [i for i in range(x.dim()) if i != axis % x.dim()], correction=0)
        self._add(mean.to(self.mean.device), var.to(self.var.device), x.numel() // len(mean))
        _write(module, mean, var)

    def _add(self, mean: Tensor, var: Tensor, count: int) -> None:
        total = self.count + count
        share, gap = count / total, mean - self.mean
        self.mean = self.mean + share * gap
        self.var = (1 - share) * self.var + share * (var + (1 - share) * gap.square())
        self.count = total

    def store(self, blend: float) -> None:
        """Put mean and unbiased variance into the layer."""
        old = _buffers(self.module)
        new = {"running_mean": self.mean, "running_var": self.var * (self.count / max(self.count - 1, 1))}
        mixed = {key: torch.lerp(_wide(old[key]).to(new[key].device), new[key], blend) for key in old}
        _write(self.module, mixed.get("running_mean"), mixed["running_var"])


def _run(model: nn.Module, batches: Iterable[Any], most: int | None, forward: Forward) -> int:
    count = 0
    for batch in islice(batches, most):
        forward(model, batch)
        count += 1
    return count


def _forward(model: nn.Module, batch: Any) -> object:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise ValueError(
            f"a batch is a {type(batch).__name__}{keys}, from which the model's input is not plain; "
            "give forward=lambda model, batch: model(batch[...])"
        )
    return model(x.to(_device(model)))


def _merge(estimates: dict[str, _Estimate]) -> dict[str, int]:
    """Merge the estimates of all ranks, by one collective for all layers; returns each layer's count."""
    parts = list(estimates.values())
    device = parts[0].mean.device
    sizes = [len(part.mean) for part in parts]
    counts = torch.cat([torch.full_like(part.mean, part.count, device=device) for part in parts])
    mean, var, count = merged_moments(
        torch.cat([part.mean.to(device) for part in parts]), torch.cat([part.var.to(device) for part in parts]), counts
    )
    merged = zip(parts, *(torch.split(joint, sizes) for joint in (mean, var, count)), strict=True)
    for part, its_mean, its_var, its_count in merged:
        part.mean, part.var, part.count = its_mean, its_var, round(its_count[0].item())
    return {name: part.count for name, part in estimates.items()}


def _check(values: dict[str, int], estimates: dict[str, _Estimate]) -> None:
    if not values:
        raise ValueError(
            f"no batch reached any of the {len(estimates)} layers with running statistics (first: "
            f"{next(iter(estimates))!r}): the model does not call them as modules, as where a part of it is compiled; "
            "give the plain model"
        )
    for name in values:
        part = estimates[name]
        if not (part.mean.isfinite().all() and part.var.isfinite().all()):
            raise ValueError(f"the input of layer {name!r} is not finite; the running statistics are left as they were")


def _layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Layers to re-estimate, and the reasons for not doing so where a layer keeps other statistics."""
    layers, skipped = {}, {}
    for name, module in model.named_modules():
        buffers = {key for key, value in module.named_buffers(recurse=False) if value is not None}
        if not any(key.startswith("running_") for key in buffers):
            continue
        if "weight" in buffers:
            skipped[name] = "it is frozen"
        elif isinstance(module, _InstanceNorm):
            skipped[name] = "it averages the statistics of samples, not those of batches"
        elif "running_var" not in buffers:
            skipped[name] = "it keeps no running variance"
        elif any(buffer.dim() != 1 for buffer in _buffers(module).values()):
            skipped[name] = "it keeps several sets of statistics"
        else:
            layers[name] = module
    return layers, skipped


def _pools_samples(module: nn.Module) -> bool:
    frozen = any(name == "weight" for name, _ in module.named_buffers(recurse=False))
    has_running = isinstance(getattr(module, "running_var", None), Tensor) and not isinstance(module, _InstanceNorm)
    return (isinstance(module, _BatchNorm) or has_running) and not frozen


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    found = dict(module.named_buffers(recurse=False))
    return {key: found[key] for key in ("running_mean", "running_var") if key in found}


def _write(module: nn.Module, mean: Tensor | None, var: Tensor) -> None:
    for key, buffer in _buffers(module).items():
        value = mean if key == "running_mean" else var
        if value is not None:
            buffer.copy_(value)


def _channels(module: nn.Module) -> int:
    return _buffers(module)["running_var"].numel()


def _channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, TokenBatchNorm) or getattr(module, "dim", None) == "tokens" else 1


def _wide(x: Tensor) -> Tensor:
    # Apple's devices have no float64.
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module itself: a compiled one may not call hooks, and DDP exchanges buffers when it is called."""
    if isinstance(model, DistributedDataParallel):
        return _unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return next(model.buffers()).device if tensor is None else tensor.device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _statistics_kept(layers: Iterable[nn.Module]) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for layer in layers for buffer in _buffers(layer).values()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Data loaders draw a seed, augmentation draws more; training goes on as if they had not."""
    python, numpy = random.getstate(), np.random.get_state()
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
