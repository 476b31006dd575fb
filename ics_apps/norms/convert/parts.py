"""Find the norm inside what was put around it, its tensors and its number of channels."""

from __future__ import annotations

from torch import Tensor, nn

from ics_apps.norms.convert.adapters import NormWrapper


def is_ours(module: nn.Module) -> bool:
    """Whether a module is a layer of this registry."""
    package, _, file = type(module).__module__.rpartition(".")
    return package == "ics_apps.norms.layers" and file != "weight"


def core(module: nn.Module) -> nn.Module:
    """The norm itself, inside what a conversion put around it."""
    while isinstance(module, NormWrapper):
        module = module.norm
    return module


def owner_of(module: nn.Module, name: str) -> nn.Module | None:
    """The module that holds a norm's tensor of this name: the norm, or the one that it is built around."""
    norm = core(module)
    for owner in (norm, norm._modules.get("norm")):
        if owner is not None and isinstance(getattr(owner, name, None), Tensor):
            return owner
    return None


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a norm; None if it has none of this name."""
    owner = owner_of(module, name)
    return None if owner is None else getattr(owner, name)


def channels_of(module: nn.Module) -> int | None:
    """Size of the channel axis, from the attributes that say it, or else from a tensor."""
    norm = core(module)
    for owner in (norm, *norm.children()):
        for name in ("num_features", "num_channels"):
            if isinstance(getattr(owner, name, None), int):
                return int(getattr(owner, name))
        shape = getattr(owner, "normalized_shape", None)
        if shape:
            return int(shape[-1])
    tensors = [tensor_of(norm, name) for name in ("weight", "running_mean")]
    sizes = [tensor.numel() for tensor in tensors if tensor is not None]
    return sizes[0] if sizes else None
