"""The registry of normalization layers: register, list, describe and build by name.

Free of torch, so that names and descriptions answer at once. The layers themselves live in `layers`; the
builders that name them, with their promises, in `catalog`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ics_apps.nearest import did_you_mean
from ics_apps.norms.options import NormError as NormError
from ics_apps.norms.options import check_options, option_parameters, origin

if TYPE_CHECKING:
    from torch import nn

NormConfig: TypeAlias = str | dict[str, Any]
"""A norm as plain data, for signatures that a YAML file fills: `"group"` or `{"name": "group", "num_groups": 8}`."""

NormSpec: TypeAlias = NormConfig | Callable[..., "nn.Module"]
"""A norm as Python code may give it: plain data, or a callable `(channels, *, dim) -> nn.Module`."""

Dim: TypeAlias = int | str
"""The kind of input: 0 for features (B, C), 1 to 3 for that many space axes (B, C, *S), "tokens" for (B, L, C)."""

DIMS: tuple[Dim, ...] = (0, 1, 2, 3, "tokens")
PLUGIN_GROUP = "ics_apps.norms"
POOLED_AXES = ("N", "C", "C/G", "S")
"""Axes that statistics can run over: N samples of the batch, C channels, C/G the channels of one group, S positions
(space, or the tokens of a sample)."""

Builder = TypeVar("Builder", bound=Callable[..., "nn.Module"])


@dataclass(frozen=True)
class NormEntry:
    """What the registry knows about one norm; the flags are promises that tests measure.

    Attributes:
        name: The one spelling of its name.
        family: `batch`, `sample`, `mixed` or `elementwise` (a plug-in may add its own).
        summary: The first line of the builder's docstring.
        doc: The rest of that docstring: formula, when to use it, traps, reference.
        pools: Axes that the training statistics run over, of `POOLED_AXES`; empty when there are no statistics.
        dims: The values of `dim` it is defined for.
        undefined_because: Why the other values of `dim` have no meaning; empty if all have one.
        stateful: True if a training step changes its buffers.
        scale_invariant: True if the output stays the same (up to eps) when the layer before it is multiplied by c > 0.
        needs_condition: True if the forward call needs a condition beside the input.
        contains_activation: True if it replaces norm and activation; a net puts no activation behind it.
        absorbs_bias: True if a bias of the layer directly before it is cancelled or made redundant by its own shift.
        acts_on_weight: True if it normalises the weight of the layer before it, to which it has to be attached.
        thrice_differentiable: True if the third derivative of the layer, as built by default, is right (physics losses
            need it); see `make_norm(..., smooth=True)` for the others.
        exact_in_bf16: True if a bfloat16 input gives the float64 result rounded, because statistics run in float32.
        reference: The paper.
        options: Name and default of each option.
        builder: The function that builds the layer.
    """

    name: str
    family: str
    summary: str
    doc: str
    pools: tuple[str, ...]
    dims: tuple[Dim, ...]
    undefined_because: str
    stateful: bool
    scale_invariant: bool
    needs_condition: bool
    contains_activation: bool
    absorbs_bias: bool
    acts_on_weight: bool
    thrice_differentiable: bool
    exact_in_bf16: bool
    reference: str
    options: Mapping[str, Any] = field(hash=False)
    builder: Callable[..., nn.Module] = field(repr=False)

    @property
    def mixes_samples(self) -> bool:
        """Whether, in training, one sample's output depends on the other samples of the batch."""
        return "N" in self.pools


def register_norm(
    name: str,
    *,
    family: str,
    pools: Iterable[str],
    stateful: bool = False,
    scale_invariant: bool,
    needs_condition: bool = False,
    contains_activation: bool = False,
    absorbs_bias: bool = False,
    acts_on_weight: bool = False,
    thrice_differentiable: bool = False,
    exact_in_bf16: bool = True,
    reference: str,
    dims: Iterable[Dim] = DIMS,
    undefined_because: str = "",
) -> Callable[[Builder], Builder]:
    """Register the decorated builder under a name.

    The builder has the signature `(channels, *, dim, **named options) -> nn.Module`; its options and their defaults are
    read from it, and its docstring becomes `NormEntry.summary` and `NormEntry.doc`. Import torch inside the builder, so
    that listing stays fast. A package offers its norms to every installation by an entry point of the group
    `ics_apps.norms` that names a module (or a function without arguments) which registers them.

    Args:
        name: lower_snake, not taken yet.
        family: See `NormEntry`, as for all that follow.
        pools: Axes the training statistics run over.
        stateful: Buffers change in training.
        scale_invariant: Output unchanged when the layer before is multiplied by c > 0.
        needs_condition: Forward needs a condition.
        contains_activation: Replaces norm and activation.
        absorbs_bias: Makes a bias directly before it redundant.
        acts_on_weight: Normalises the weight of the layer before it.
        thrice_differentiable: The third derivative is right without `smooth`.
        exact_in_bf16: bfloat16 in gives the exact result, rounded.
        reference: Author, year, arXiv number; or "ours".
        dims: Values of `dim` it is defined for.
        undefined_because: One clause saying why not for the others.

    Raises:
        NormError: The name is taken, or an axis or a dimension is none of the known ones.

    Example:
        >>> @register_norm("halved", family="elementwise", pools=(), scale_invariant=False, reference="ours")
        ... def halved(channels, *, dim, factor: float = 0.5):
        ...     '''Multiply by a constant.'''
        >>> norm_entry("halved").options["factor"]
        0.5
        >>> del _ENTRIES["halved"]
    """
    _check_metadata(name, tuple(pools), tuple(dims))

    def decorate(builder: Builder) -> Builder:
        if name in _ENTRIES:
            first, second = origin(_ENTRIES[name].builder), origin(builder)
            raise NormError(f"norm {name!r} is registered twice, by {first} and by {second}; rename one of them")
        summary, _, doc = (inspect.getdoc(builder) or "").partition("\n")
        _ENTRIES[name] = NormEntry(
            name=name,
            family=family,
            summary=summary.strip(),
            doc=doc.strip(),
            pools=tuple(pools),
            dims=tuple(dims),
            undefined_because=undefined_because,
            stateful=stateful,
            scale_invariant=scale_invariant,
            needs_condition=needs_condition,
            contains_activation=contains_activation,
            absorbs_bias=absorbs_bias,
            acts_on_weight=acts_on_weight,
            thrice_differentiable=thrice_differentiable,
            exact_in_bf16=exact_in_bf16,
            reference=reference,
            options=MappingProxyType({p.name: p.default for p in option_parameters(builder)}),
            builder=builder,
        )
        return builder

    return decorate


def make_norm(spec: NormSpec, channels: int, dim: Dim = 2, *, smooth: bool = False) -> nn.Module:
    """Build a norm layer for `channels` channels.

    Args:
        spec: A name, a flat dict of name and options, or a callable `(channels, *, dim) -> nn.Module`.
        channels: Size of the channel axis, >= 1.
        dim: 0 for inputs (B, C), 1 to 3 for (B, C, *S), "tokens" for (B, L, C).
        smooth: Make derivatives of every order right, as losses that contain derivatives of the net need them. torch's
            fused batch and layer norm are wrong from the third order on, without a word; this takes plain operations
            in their place, at about three times the time.

    Raises:
        NormError: Unknown name or option, a value of the wrong type or out of range, a norm not defined for `dim`, or
            one whose formula has kinks and `smooth`.

    Example:
        >>> make_norm({"name": "group", "num_groups": 4}, 16).num_groups
        4
        >>> make_norm("gruop", 16)
        Traceback (most recent call last):
        ics_apps.norms.options.NormError: unknown norm 'gruop'; did you mean 'group'? `ics-apps norms list` shows all
    """
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise NormError(f"channels must be a positive integer, got {channels!r}")
    if dim not in DIMS or isinstance(dim, bool):
        raise NormError(f"dim must be 0, 1, 2, 3 or 'tokens', got {dim!r}")
    if not isinstance(spec, str | Mapping) and callable(spec):
        _check_callable(spec, channels, dim)
        return spec(channels, dim=dim)
    entry, options = parse_norm(spec)
    if dim not in entry.dims:
        allowed = ", ".join(map(repr, entry.dims))
        reason = entry.undefined_because or "its author does not offer it"
        raise NormError(f"norm {entry.name!r} is not defined for dim {dim!r}: {reason} (defined for dim {allowed})")
    norm = entry.builder(channels, dim=dim, **options)
    return _smooth(norm, entry, dim) if smooth else norm


def parse_norm(spec: NormConfig) -> tuple[NormEntry, dict[str, Any]]:
    """Split a spec given as plain data into its entry and its options, both checked.

    Example:
        >>> entry, options = parse_norm({"name": "group", "num_groups": 4})
        >>> entry.name, options
        ('group', {'num_groups': 4})
    """
    if isinstance(spec, str):
        return norm_entry(spec), {}
    if not isinstance(spec, Mapping):
        raise NormError(
            f"a norm is a name, a dict with the key 'name', or a callable, got {spec!r}; 'none' means no normalization"
        )
    options = dict(spec)
    if "name" not in options:
        raise NormError(f"a norm given as a dict needs the key 'name', as in {{'name': 'group'}}, got {options!r}")
    entry = norm_entry(options.pop("name"))
    check_options(entry.name, entry.builder, options)
    return entry, options


def list_norms(pattern: str = "*", family: str | None = None) -> list[str]:
    """Names of the registered norms, plug-ins included, sorted.

    Args:
        pattern: Shell pattern that the name has to match.
        family: Keep this family only.

    Raises:
        NormError: There is no such family.

    Example:
        >>> list_norms("layer*")
        ['layer', 'layer_c', 'layer_chw']
    """
    _load_plugins()
    families = sorted({entry.family for entry in _ENTRIES.values()})
    if family is not None and family not in families:
        raise NormError(f"unknown family {family!r}{did_you_mean(family, families)} Families: {', '.join(families)}")
    return sorted(
        name
        for name, entry in _ENTRIES.items()
        if fnmatchcase(name, pattern) and (family is None or entry.family == family)
    )


def norm_entry(name: str) -> NormEntry:
    """What the registry knows about a norm.

    Raises:
        NormError: No norm has this name.

    Example:
        >>> norm_entry("batch").pools, norm_entry("batch").mixes_samples
        (('N', 'S'), True)
    """
    if not isinstance(name, str):
        raise NormError(f"the name of a norm is a string, got {name!r}; 'none' means no normalization")
    if name not in _ENTRIES:
        _load_plugins()
    if name not in _ENTRIES:
        raise NormError(f"unknown norm {name!r}{did_you_mean(name, _ENTRIES)} `ics-apps norms list` shows all")
    return _ENTRIES[name]


_ENTRIES: dict[str, NormEntry] = {}
_LOADED_PLUGINS: set[str] = set()


def _smooth(norm: nn.Module, entry: NormEntry, dim: Dim) -> nn.Module:
    from ics_apps.norms.layers.smooth import smooth

    return smooth(norm, entry, dim)


def _load_plugins() -> None:
    for point in entry_points(group=PLUGIN_GROUP):
        key = f"{point.name} = {point.value}"
        if key in _LOADED_PLUGINS:
            continue
        try:
            loaded = point.load()
            # An entry point may name a decorated builder itself: importing it has registered it.
            if callable(loaded) and all(entry.builder is not loaded for entry in _ENTRIES.values()):
                loaded()
        except Exception as error:
            raise NormError(f"the norm plug-in {key!r} could not be loaded: {error}; repair or uninstall it") from error
        _LOADED_PLUGINS.add(key)


def _check_metadata(name: str, pools: tuple[str, ...], dims: tuple[Dim, ...]) -> None:
    if not name.isidentifier() or name != name.lower():
        raise NormError(f"the name of a norm is lower_snake, as in 'layer_c', got {name!r}")
    for axis in pools:
        if axis not in POOLED_AXES:
            raise NormError(f"norm {name!r} pools the axis {axis!r}; known axes: {', '.join(POOLED_AXES)}")
    for dim in dims:
        if dim not in DIMS:
            raise NormError(f"norm {name!r} is declared for dim {dim!r}; dims are {', '.join(map(repr, DIMS))}")


def _check_callable(spec: Callable[..., nn.Module], channels: int, dim: Dim) -> None:
    try:
        signature = inspect.signature(spec)
    except ValueError:
        return
    try:
        signature.bind(channels, dim=dim)
    except TypeError as error:
        name = getattr(spec, "__name__", repr(spec))
        raise NormError(
            f"a callable norm is called as norm(channels, dim=dim), which {name}{signature} does not accept; "
            f"wrap it: lambda channels, dim: {name}(channels)"
        ) from error
