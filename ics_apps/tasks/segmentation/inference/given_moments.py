"""Norms that pool positions, run by moments that come from outside instead of from their input.

What the moments of a whole image are is found in `global_statistics`; here a layer is told them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ics_apps.norms.condition import condition
from ics_apps.norms.engine.axes import widened
from ics_apps.norms.engine.moments import channel_moments, pooled_groups, standardized
from ics_apps.norms.layers.batch_like import VirtualBatchNorm
from ics_apps.norms.layers.conditional import AdaptiveInstanceNorm, ConditionalGroupNorm
from ics_apps.norms.layers.evonorm import EvoNormB0, EvoNormS0
from ics_apps.norms.layers.mixed import BatchChannelNorm, BlendedNorm, SwitchableNorm
from ics_apps.norms.layers.sample import FilterResponseNorm, GlobalResponseNorm, GroupNorm, InstanceNorm


class Moments(NamedTuple):
    """Mean and biased variance (B, C) of each channel of each sample, in float64, and over how many positions."""

    mean: Tensor
    var: Tensor
    positions: int


Table = tuple[Tensor, Tensor]
Rule = Callable[..., Table]
Forward = Callable[..., Tensor]


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Call other functions in place of some modules' `forward` inside the block; hooks and `state_dict` see nothing."""
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


@contextmanager
def fixed_statistics(net: nn.Module, tables: Mapping[str, Moments]) -> Iterator[None]:
    r"""Normalise by given moments inside the block: each layer named does what it would on an input that has them.

    Args:
        net: The net, in evaluation mode.
        tables: For names of layers of `pooling_norms`, the moments to take.

    Example:
        >>> net = nn.Sequential(nn.InstanceNorm1d(1))
        >>> two = torch.full((1, 1), 2.0, dtype=torch.float64)
        >>> with fixed_statistics(net, {"0": Moments(two, 2 * two, 9)}):  # (x - 2) / sqrt(4)
        ...     net(torch.tensor([[[2.0, 4.0, 6.0]]]))
        tensor([[[0.0000, 1.0000, 2.0000]]])
    """
    modules = dict(net.named_modules())
    with replaced_forwards(
        {modules[name]: partial(by_moments, modules[name], table) for name, table in tables.items()}
    ):
        yield


def pooling_norms(net: nn.Module) -> dict[str, nn.Module]:
    """The norms of a net whose evaluation pools the positions of a sample, by name.

    Raises:
        ValueError: One of them cannot be told its moments; the sentence says which and why.

    Example:
        >>> list(pooling_norms(nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(2, 8))))
        ['1']
    """
    found = {}
    for name, module in net.named_modules():
        reason = _why_not(module)
        if reason:
            raise ValueError(f"layer {name!r} ({type(module).__name__}) cannot take whole-image statistics: {reason}")
        if _pools_positions(module):
            found[name] = module
    return found


def by_moments(module: nn.Module, moments: Moments, x: Tensor, *conditions: Tensor) -> Tensor:
    """What a norm of `pooling_norms` makes of x if the moments are these."""
    values = widened(x)
    if isinstance(module, EvoNormS0):
        _, var = pooled_groups(moments.mean, moments.var, module.num_groups)
        scale = torch.rsqrt(var + module.eps) * module.weight
        y = values * torch.sigmoid(values * _wide(module.slope, x)) * _wide(scale, x) + _wide(module.bias, x)
    elif isinstance(module, EvoNormB0):
        own = (moments.var + module.eps).sqrt()
        inner = values * _wide(module.slope, x) + _wide(own, x)
        floor = _wide((module.running_var + module.eps).sqrt(), x)
        y = values / torch.maximum(inner, floor) * _wide(module.weight, x) + _wide(module.bias, x)
    else:
        scale, offset = _tables(module, moments, *conditions)
        mean = moments.mean.to(values)
        y = torch.addcmul(_wide(offset, x), values - _wide(mean, x), _wide(scale, x))
        if isinstance(module, FilterResponseNorm):
            y = torch.relu(y) + _wide(module.threshold, x)
    return y.to(x.dtype)


def _tables(module: nn.Module, moments: Moments, *conditions: Tensor) -> Table:
    """Scale and offset of a norm that is affine once its moments are known."""
    mean, var, positions = moments
    given = conditions[0] if conditions else None
    if isinstance(module, BatchChannelNorm | BlendedNorm | SwitchableNorm):
        return module.eval_program(mean, var, *module.tensors(), *module.statistics())
    if isinstance(module, GlobalResponseNorm):
        return module.program(mean, var, *module.tensors(), positions=float(positions))
    if isinstance(module, FilterResponseNorm):
        return module.program(mean, var, *module.tensors(), module.threshold)
    if isinstance(module, ConditionalGroupNorm):
        return module.program(mean, var, *module.conditional(condition("label", given), len(mean)))
    if isinstance(module, AdaptiveInstanceNorm):
        return module.program(mean, var, *channel_moments(condition("style", given), module.dim))
    if isinstance(module, _InstanceNorm):
        return standardized(mean, mean, var, module.weight, module.bias, module.eps)
    if isinstance(module, nn.GroupNorm):
        groups = pooled_groups(mean, var, module.num_groups)
        return standardized(mean, *groups, module.weight, module.bias, module.eps)
    raise TypeError(f"{type(module).__name__} is no norm that pools positions")


def _wide(table: Tensor, x: Tensor) -> Tensor:
    r"""A table (C,) or (B, C) in the type of x (B, C, \*S) and the shape that meets it."""
    rows = table if table.dim() == 2 else table.unsqueeze(0)
    return rows.to(widened(x).dtype).reshape(*rows.shape, *(1,) * (x.dim() - 2))


_OURS = (
    AdaptiveInstanceNorm, BatchChannelNorm, BlendedNorm, ConditionalGroupNorm, EvoNormB0, EvoNormS0,
    FilterResponseNorm, GlobalResponseNorm, GroupNorm, InstanceNorm, SwitchableNorm,
)  # fmt: skip


def _pools_positions(module: nn.Module) -> bool:
    if isinstance(module, _InstanceNorm):
        return module.training or not module.track_running_stats
    return isinstance(module, (*_OURS, nn.GroupNorm))


def _why_not(module: nn.Module) -> str:
    if isinstance(module, VirtualBatchNorm):
        return "it mixes its sample's moments with those of a reference inside its own call"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return "it has an affine pair for each position, so it fixes the size of its input; take 'layer_chw'"
    if not _pools_positions(module):
        return ""
    if getattr(module, "dim", None) == "tokens":
        return "tokens have no place in the image"
    known = (*_OURS, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    if not any(type(module).forward is kind.forward for kind in known):
        return "its class changes the forward pass of a known norm in a way that is not known here"
    return ""
