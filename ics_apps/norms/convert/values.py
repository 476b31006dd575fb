"""Carry the values of an old norm over to a new one: affine values, running statistics, flags, device and type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.convert.describe import OldNorm
from ics_apps.norms.convert.parts import core, owner_of, tensor_of


def carry_values(old: OldNorm, module: nn.Module, norm: nn.Module, beside: Tensor | None) -> None:
    """Give a fresh norm everything of the old one that has a meaning in it.

    Args:
        old: Description of the old norm.
        module: The old norm.
        norm: The new norm, at its start values; changed in place.
        beside: A tensor to take device and type from if the old norm has none.
    """
    before = core(module)
    gain, shift = (_receives(norm, name, start, old.channels or 0) for name, start in (("weight", 1.0), ("bias", 0.0)))
    own = [tensor for tensor in [*before.parameters(), *before.buffers()] if tensor.is_floating_point()]
    like = own[0] if own else beside
    if like is not None:
        norm.to(like.device, like.dtype)
    if type(before) is type(norm) and _shapes(before) == _shapes(norm):
        _carry_all(before, norm)
        return
    if gain and old.gain is not None:
        _put(norm, "weight", old.gain)
    if shift and old.shift is not None:
        _put(norm, "bias", old.shift)
    with torch.no_grad():
        _carry_to_conditions(old, norm)
        _carry_statistics(old, before, norm)
    # A frozen layer stays frozen, also where the new one has parameters that the old one had not.
    flags = [parameter.requires_grad for parameter in before.parameters()]
    if flags and not any(flags):
        norm.requires_grad_(False)


def has_shift(norm: nn.Module) -> bool:
    """Whether a norm adds something of its own to each channel."""
    affine = getattr(core(norm), "conditional", None)
    return affine is not None or tensor_of(norm, "bias") is not None


def left_behind(old: OldNorm, module: nn.Module, new: nn.Module) -> list[str]:
    """Names of the old norm's parameters that have no counterpart in the new one."""
    before, behind = core(module), {id(p) for child in old.after for p in child.parameters()}
    if type(before) is type(core(new)):
        return []
    known = {
        id(tensor_of(module, name)) for name, value in (("weight", old.gain), ("bias", old.shift)) if value is not None
    }
    return [name for name, p in before.named_parameters() if id(p) not in known | behind]


def _carry_all(before: nn.Module, norm: nn.Module) -> None:
    for path, parameter in before.named_parameters(remove_duplicate=False):
        owner, _, name = path.rpartition(".")
        setattr(norm.get_submodule(owner), name, parameter)
    buffers = dict(norm.named_buffers())
    with torch.no_grad():
        for path, buffer in before.named_buffers():
            buffers[path].copy_(buffer)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def _receives(norm: nn.Module, name: str, start: float, channels: int) -> bool:
    """Whether the new norm's tensor means what the old one's did: by channel, starting as a gain or shift."""
    tensor = tensor_of(norm, name)
    if tensor is None or tensor.numel() % channels or tensor.numel() == 0:
        return False
    return tensor.is_meta or bool((tensor == start).all())


def _put(norm: nn.Module, name: str, value: Tensor) -> None:
    owner = owner_of(norm, name)
    target = getattr(owner, name)
    if isinstance(target, nn.Parameter) and isinstance(value, nn.Parameter) and target.shape == value.shape:
        # The same object, so that ties to other layers and an optimizer that holds it stay valid.
        setattr(owner, name, value)
        return
    with torch.no_grad():
        # Norms with values for each of several domains start with the old ones for all of them.
        target.copy_(value.repeat(target.numel() // value.numel()).reshape(target.shape))
    if isinstance(target, nn.Parameter) and isinstance(value, nn.Parameter):
        target.requires_grad_(value.requires_grad)


def _carry_to_conditions(old: OldNorm, norm: nn.Module) -> None:
    """A table of scales and shifts by label starts with the old ones in every row."""
    affine = getattr(norm, "conditional", None)
    if not isinstance(affine, nn.Module):
        return
    rows = affine.table.weight if hasattr(affine, "table") else affine.linear.bias  # type: ignore[union-attr]
    if not isinstance(rows, Tensor):
        return
    channels = rows.shape[-1] // 2
    if old.gain is not None:
        rows[..., :channels] = old.gain - 1
    if old.shift is not None:
        rows[..., channels:] = old.shift


def _carry_statistics(old: OldNorm, before: nn.Module, norm: nn.Module) -> None:
    """Running statistics of the batch, also to norms that keep another function of them."""
    mean, var = tensor_of(before, "running_mean"), tensor_of(before, "running_var")
    if old.known.entry == "instance" or mean is None or var is None or mean.shape != (old.channels,):
        return
    std = (var + float(old.options.get("eps", 1e-5))).sqrt()
    count = tensor_of(before, "num_batches_tracked")
    kept = {
        "running_mean": mean,
        "running_var": var,
        "running_std": std,
        "running_scale": std,
        "running_square": var + mean.square(),
        "num_batches_tracked": count,
    }
    for name, value in kept.items():
        target = tensor_of(norm, name)
        if target is not None and value is not None:
            target.copy_(value)
