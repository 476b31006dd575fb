"""Build the norm that takes the place of another, with what the old one did beside normalising."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ics_apps.norms.convert.adapters import NormAct, RankAdapter
from ics_apps.norms.convert.describe import OldNorm
from ics_apps.norms.convert.parts import core
from ics_apps.norms.convert.values import carry_values
from ics_apps.norms.options import NormError
from ics_apps.norms.registry import Dim, NormEntry, NormSpec, make_norm, parse_norm

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def built(
    spec: NormSpec, old: OldNorm, module: nn.Module, *, ranks: frozenset[int], beside: Tensor | None
) -> nn.Module:
    """The new norm with all that it takes from the old one, ready to be put in its place.

    Args:
        spec: The norm to build.
        old: Description of the norm that it replaces.
        module: That norm.
        ranks: Ranks of the inputs that reach it, where they are known.
        beside: A tensor of the model, for device and type where the old norm has none of its own.

    Raises:
        NormError: The norm cannot be built for these channels or this rank.
    """
    if old.channels is None:
        raise NormError("it does not know its number of channels; pass `example`, an input of the model")
    dim, any_rank = _dimension(old, ranks)
    try:
        norm = _with_options_of(spec, old, module, dim)
    except NormError as error:
        if any_rank and "not defined for dim" in str(error):
            raise NormError(f"{error}; pass `example`, an input of the model, to have the rank measured") from error
        raise
    carry_values(old, module, norm, beside)
    if any_rank and not takes_any_rank(norm):
        norm = RankAdapter(norm, dim)
    norm.train(module.training)
    if old.after and not contains_activation(spec):
        norm = NormAct(norm, old.after)
        # Not by train(), which would also change the carried modules, and they may have a mode of their own.
        norm.training = norm.after.training = module.training
    _carry_hooks(module, norm)
    return norm


def is_already(spec: NormSpec, old: OldNorm) -> bool:
    """Whether a norm of another library is the one asked for, with the same options.

    Batch norm is not: ours has the same output, and closes traps of torch's.
    """
    entry = entry_of(spec)
    if entry is None or old.known.entry is None or entry.family == "batch":
        return False
    names = {"layer_c", "layer"} if old.known.entry == "layer_c" and not old.known.first else {old.known.entry}
    _, options = parse_norm(spec)  # type: ignore[arg-type]
    return entry.name in names and all(old.options.get(name) == value for name, value in options.items())


def entry_of(spec: NormSpec) -> NormEntry | None:
    """The registry's entry of a spec; None for a callable."""
    return None if callable(spec) else parse_norm(spec)[0]


def takes_any_rank(norm: nn.Module) -> bool:
    """Whether a norm takes inputs of every rank by itself, as those do that only look at the channel axis."""
    classes = (nn.Identity, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return type(norm) in classes or getattr(norm, "axis", None) in (1, -1)


def contains_activation(spec: NormSpec) -> bool:
    """Whether a norm replaces norm and activation."""
    entry = entry_of(spec)
    return entry is not None and entry.contains_activation


def _dimension(old: OldNorm, ranks: frozenset[int]) -> tuple[Dim, bool]:
    """The `dim` to build for, and whether inputs of other ranks may come as well."""
    if not old.known.first:
        return (0, False) if ranks == {2} else ("tokens", ranks != {3})
    dims = tuple(rank - 2 for rank in sorted(ranks)) or old.known.dims
    if len(dims) == 1:
        return dims[0], False
    return (2 if 2 in dims else 1), True


def _with_options_of(spec: NormSpec, old: OldNorm, module: nn.Module, dim: Dim) -> nn.Module:
    """Build; what the spec leaves open (eps, momentum, affine, groups) is as it was in the old norm."""
    channels = old.channels or 0
    if callable(spec):
        return make_norm(spec, channels, dim)
    entry, options = parse_norm(spec)
    carried = _carried(entry, old)
    norm = make_norm({"name": entry.name, **carried, **options}, channels, dim)
    before = core(module)
    if type(norm) is type(before):
        # The same layer: all of its options are kept, also those that only this layer has.
        holders = [before, *before.children()]
        own = {
            name: getattr(holder, name)
            for holder in reversed(holders)
            for name in entry.options
            if _is_plain(getattr(holder, name, holder))
        }
        norm = make_norm({"name": entry.name, **own, **carried, **options}, channels, dim)
    return norm


def _carried(entry: NormEntry, old: OldNorm) -> dict[str, Any]:
    wanted = {"affine", "momentum"}
    # An eps that guards a variance says nothing about one that guards something else.
    if old.known.by_default and (entry.scale_invariant or entry.family == "batch"):
        wanted.add("eps")
    if entry.name == old.known.entry == "group":
        wanted.add("num_groups")
    if entry.family == "batch" and old.known.entry in ("batch", "sync_batch"):
        wanted.add("track_running_stats")
    if old.options.get("momentum", 0) is None and "None" not in str(entry.builder.__annotations__.get("momentum")):
        wanted.remove("momentum")
    return {name: old.options[name] for name in wanted & old.options.keys() & entry.options.keys()}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _carry_hooks(module: nn.Module, norm: nn.Module) -> None:
    for name in _HOOKS:
        # The same dictionaries, so that the handles which remove the hooks still do.
        norm.__dict__[name] = module.__dict__[name]
    if hasattr(module, "qconfig"):
        norm.qconfig = module.qconfig
