"""Read off a module of any library which norm it is: its kind, channels, options and values. Changes nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ics_apps.norms.convert.adapters import NormAct, NormWrapper, RankAdapter
from ics_apps.norms.convert.known import KnownNorm, known_class
from ics_apps.norms.convert.parts import channels_of, is_ours, tensor_of
from ics_apps.norms.convert.probe import recognised, second_argument
from ics_apps.norms.layers.weight import WeightNormalization
from ics_apps.norms.registry import DIMS, Dim

BEHIND = ("drop", "act", "activation")
"""What a layer of timm or transformers that is norm and activation in one calls the modules behind its norm."""


@dataclass(frozen=True)
class OldNorm:
    """What is known of a norm before it is replaced.

    Attributes:
        known: Its kind and layout.
        channels: Size of the channel axis; None if the module does not know it (`nn.LocalResponseNorm`).
        options: Its options under the registry's names, as far as they are of use to another norm.
        gain: What it multiplies by, shape (C,); None if nothing. Of `nn.Parameter` where it is one of the module's.
        shift: What it adds, likewise.
        after: The modules that it applies behind its norm: dropout, activation.
        note: What is lost with it.
    """

    known: KnownNorm
    channels: int | None
    options: dict[str, Any] = field(default_factory=dict)
    gain: Tensor | None = None
    shift: Tensor | None = None
    after: tuple[nn.Module, ...] = ()
    note: str = ""


def describe(module: nn.Module) -> OldNorm | str | None:
    """The norm that a module is; the reason why it cannot be replaced; or None if it is no norm."""
    if isinstance(module, NormWrapper):
        inner = describe(module.norm)
        return _wrapped(inner, module) if isinstance(inner, OldNorm) else inner
    if isinstance(module, WeightNormalization):
        return "it acts on the weight of the layer before it; remove the parametrization there first"
    known, offset = known_class(type(module)), 0.0
    if is_ours(module):
        return _values(module, _our_kind(module, known), offset)
    if known is None and not _named_norm(module):
        return None
    reason = _not_ready(module)
    if reason:
        return reason
    if known is None:
        found = _recognise(module)
        if isinstance(found, str):
            return found
        known, offset = found
    return _values(module, known, offset)


def layout(old: OldNorm, ranks: frozenset[int]) -> str:
    """The axes of a norm's input, for people: "(B, C, S, S)"."""
    if not old.known.first:
        return {frozenset({2}): "(B, C)", frozenset({3}): "(B, L, C)"}.get(ranks, "(B, ..., C)")
    dims = [rank - 2 for rank in ranks] or [int(dim) for dim in old.known.dims]
    return f"(B, C{', S' * dims[0]})" if len(dims) == 1 else "(B, C, ...)"


def _values(module: nn.Module, known: KnownNorm, offset: float) -> OldNorm | str:
    shape = getattr(module, "normalized_shape", None)
    if shape is not None and len(shape) > 1:
        return f"it normalises over the last {len(shape)} axes {tuple(shape)} with a value an element, as no norm here"
    known = _layout_of(module, known)
    weight, bias = tensor_of(module, "weight"), tensor_of(module, "bias")
    options: dict[str, Any] = {"affine": weight is not None or bias is not None}
    for theirs, ours in _OPTIONS.items():
        if isinstance(getattr(module, theirs, None), int | float):
            options[ours] = getattr(module, theirs)
    if isinstance(module, _NormBase) and module.momentum is None:
        # Of all the options None means something here only: the plain average of all batches.
        options["momentum"] = None
    after, note = _behind(module, known)
    channels = channels_of(module)
    # The weight of a response norm multiplies the competition between channels; as a gain its start value 0 would kill.
    competing = known.entry == "global_response"
    return OldNorm(
        known=known,
        channels=channels,
        options=options,
        gain=None if competing else _vector(weight, offset, channels),
        shift=None if competing else _vector(bias, 0.0, channels),
        after=after,
        note=note or _lost_statistics(module, known),
    )


_OPTIONS = {
    "variance_epsilon": "eps",
    "epsilon": "eps",
    "eps": "eps",
    "momentum": "momentum",
    "num_groups": "num_groups",
    "groups": "num_groups",
    "track_running_stats": "track_running_stats",
}


def _vector(tensor: Tensor | None, offset: float, channels: int | None) -> Tensor | None:
    if tensor is None or tensor.numel() != channels:
        return None
    if tensor.dim() == 1 and not offset:
        return tensor
    changed = (tensor.detach() + offset).flatten()
    return nn.Parameter(changed, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else changed


def _behind(module: nn.Module, known: KnownNorm) -> tuple[tuple[nn.Module, ...], str]:
    if isinstance(getattr(module, "act_name", None), str):
        return _inplace_abn_activation(module), ""
    if known.activation is not None and getattr(module, "apply_act", True):
        stand_in = known.activation()
        return (stand_in,), f"its activation is part of its formula; {type(stand_in).__name__} takes its place"
    modules = [module._modules.get(name) for name in BEHIND]
    return tuple(m for m in modules if m is not None and not isinstance(m, nn.Identity)), ""


def _inplace_abn_activation(module: nn.Module) -> tuple[nn.Module, ...]:
    slope = float(module.act_param)  # type: ignore[arg-type]
    made = {"leaky_relu": nn.LeakyReLU(slope), "elu": nn.ELU(slope)}.get(str(module.act_name))
    return () if made is None else (made,)


def _lost_statistics(module: nn.Module, known: KnownNorm) -> str:
    if known.entry == "instance" and tensor_of(module, "running_mean") is not None:
        return "its running statistics are dropped"
    return "its auxiliary batch norms are dropped" if hasattr(module, "aux_bn") else ""


def _named_norm(module: nn.Module) -> bool:
    """Whether a class is called a norm, or inherits from one, and is one layer, not a block that contains one."""
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return True
    children = {child for child in module._modules if child not in (*BEHIND, "parametrizations")}
    return not children and re.search(r"[Nn]orm(?![a-z])", type(module).__name__) is not None


def _recognise(module: nn.Module) -> tuple[KnownNorm, float] | str:
    name = type(module).__name__
    if tensor_of(module, "running_mean") is not None and name.endswith("FrozenBatchNorm2d"):
        return KnownNorm("batch_frozen", dims=(2,)), 0.0
    extra = second_argument(module)
    if extra is not None:
        return f"its forward pass takes a second argument, {extra!r}, which no norm here does"
    eps = next(
        (getattr(module, name) for name in ("variance_epsilon", "epsilon", "eps") if hasattr(module, name)), 1e-6
    )
    if isinstance(eps, float):
        found = recognised(module, eps)
        if found is not None:
            return found
    return f"class {name} is not known, and it computes neither a layer norm nor an RMS norm of its channels"


def _our_kind(module: nn.Module, known: KnownNorm | None) -> KnownNorm:
    if known is None:
        known = KnownNorm("batch" if isinstance(module, _BatchNorm) else None, dims=_batch_dims(module))
    tokens = getattr(module, "axis", None) in (2, -1) or type(module).__name__.startswith("Token")
    return replace(known, first=not tokens)


def _layout_of(module: nn.Module, known: KnownNorm) -> KnownNorm:
    """What a class leaves open and its instance knows: the end where channels are, or the rank."""
    if hasattr(module, "channel_dim"):
        return replace(known, first=bool(module.channel_dim == 1))
    dim = getattr(module, "dim", None)
    if dim == "tokens":
        return replace(known, first=False)
    return replace(known, dims=(dim,)) if known.first and len(known.dims) > 1 and dim in DIMS else known


def _batch_dims(module: nn.Module) -> tuple[Dim, ...]:
    kinds: dict[type[nn.Module], tuple[Dim, ...]] = {
        nn.BatchNorm1d: (0, 1),
        nn.BatchNorm2d: (2,),
        nn.BatchNorm3d: (3,),
    }
    return next((dims for kind, dims in kinds.items() if isinstance(module, kind)), (0, 1, 2, 3))


def _wrapped(norm: OldNorm, wrapper: NormWrapper) -> OldNorm:
    if isinstance(wrapper, NormAct):
        return replace(norm, after=tuple(wrapper.after))
    dim = wrapper.dim if isinstance(wrapper, RankAdapter) else 2
    if dim == "tokens":
        return replace(norm, known=replace(norm.known, first=False))
    return replace(norm, known=replace(norm.known, first=True, dims=(0, 1) if dim == 1 else (0, 1, 2, 3)))


def _not_ready(module: nn.Module) -> str:
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "it is not initialised; run one batch through the model first"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized; remove the parametrization first"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted; convert before scripting"
    return ""
