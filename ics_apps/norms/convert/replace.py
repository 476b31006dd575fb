"""`convert_norms`: put other norms in the place of those that a model has; all are built before any is put in."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ics_apps.norms.convert.before import is_plain_layer, layers_before
from ics_apps.norms.convert.choose import FoundNorm, Where, chosen, find_norms, put
from ics_apps.norms.convert.describe import OldNorm, layout
from ics_apps.norms.convert.parts import channels_of, core, is_ours
from ics_apps.norms.convert.report import ConversionReport, ConvertedNorm
from ics_apps.norms.convert.trace import Example, Trace, traced
from ics_apps.norms.convert.transfer import built, entry_of, is_already
from ics_apps.norms.convert.values import has_shift, left_behind
from ics_apps.norms.layers.weight import WeightNormalization, attach_weight_norm
from ics_apps.norms.options import NormError
from ics_apps.norms.registry import NormSpec


def convert_norms(
    model: nn.Module, to: NormSpec, *, where: Where = None, example: Example | None = None
) -> ConversionReport:
    """Replace norms of any model, in place, and say what was replaced and what was not and why.

    A norm keeps its affine values (the same parameters, if their shapes agree), its flags, mode, device, type and
    hooks, and the activation or dropout that was fused into it; batch norms and frozen ones hand on their running
    statistics. What `to` leaves open is as it was: eps, momentum, affine, and the groups of a group norm. So the
    conversion of a norm to itself changes nothing, batch -> batch_frozen nothing in evaluation. Any other conversion
    gives another function, which has to be trained; convert before the optimizer is built, or it does not know the new
    parameters.

    Every new norm is built before the first is put in, so an error leaves the model as it was. A layer with a norm
    that gives its channels a shift (bias), replaced by one that gives none, is given a bias of zeros.

    Args:
        model: Any module with norms of torch, torchvision, timm, transformers or ours.
        to: The norm: a name, a dict of name and options, or a callable `(channels, *, dim) -> nn.Module`.
        where: Which of the model's norms: a class, a pattern of names ("layer1.*"), several of both, or a function
            (name, module) -> bool. None is all of them but response norms, which do not normalise.
        example: An input of the model: a tensor, a tuple of arguments or a dict of named ones. It is run once, in
            evaluation mode, to see the rank of each norm's input and the norms that are function calls without a
            module, which the report lists as not reached. Without it, a norm that takes inputs of several ranks is put
            into a `RankAdapter`, which does the same at the cost of `.norm` in its parameter names.

    Raises:
        NormError: `where` names no norm; the example does not run; or the norm cannot take the place of some layers
            (6 channels in 8 groups), which are all named.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        >>> print(convert_norms(net, "group"))
        1 norm: 1 replaced, 0 left
        1  16  (B, C, S, S)  BatchNorm2d -> GroupNorm
        >>> print(convert_norms(net, "rms"))
        1 norm: 1 replaced, 0 left
        1  16  (B, C, S, S)  GroupNorm -> RMSNorm: it gives no shift, so '0' got a bias of zeros

    Reference: ours.
    """
    entry = entry_of(to)
    norms = find_norms(model)
    wanted = chosen(norms, where)
    trace = None if example is None else _observed(model, norms, example)
    steps = [_planned(norm, to, trace, asked_for=where is not None, beside=_any_tensor(model)) for norm in wanted]
    before: dict[str, str] = {}
    if any(_needs_layer_before(step) for step in steps):
        before = trace.before if trace else layers_before(model, [norm.name for norm in norms])
    if entry is not None and entry.acts_on_weight:
        steps = [_tried_on_weight(model, step, before.get(step.found.name)) for step in steps]
    _refuse_impossible(steps, to)
    rows = tuple(_carried_out(model, step, before.get(step.found.name)) for step in steps)
    return ConversionReport(rows, tuple(trace.not_reached) if trace else (), _without_fused_encoders(model, steps))


@dataclass(frozen=True)
class _Step:
    """What is to happen to one norm: the new one, or why it stays, or why the new one cannot be built for it."""

    found: FoundNorm
    new: nn.Module | None = None
    layout: str = ""
    stays: str = ""
    impossible: str = ""


def _observed(model: nn.Module, norms: list[FoundNorm], example: Example) -> Trace:
    layers = [name for name, module in model.named_modules() if is_plain_layer(module)]
    return traced(model, example, [norm.name for norm in norms], layers)


def _any_tensor(model: nn.Module) -> Tensor | None:
    return next((tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()), None)


def _planned(found: FoundNorm, to: NormSpec, trace: Trace | None, *, asked_for: bool, beside: Tensor | None) -> _Step:
    old = found.known
    if isinstance(old, str):
        return _Step(found, stays=old)
    if not old.known.by_default and not asked_for:
        return _Step(found, stays="a response norm does not normalise; name it in `where` to replace it")
    if not is_ours(core(found.module)) and is_already(to, old):
        return _Step(found, stays="it is this norm already")
    ranks = frozenset(trace.ranks.get(found.name, ())) if trace else frozenset()
    if old.channels is None and trace:
        old = replace(old, channels=trace.channels.get(found.name))
    try:
        return _Step(found, built(to, old, found.module, ranks=ranks, beside=beside), layout(old, ranks))
    except NormError as error:
        return _Step(found, impossible=str(error))


def _needs_layer_before(step: _Step) -> bool:
    return _loses_shift(step) or (step.new is not None and isinstance(core(step.new), WeightNormalization))


def _loses_shift(step: _Step) -> bool:
    old = step.found.known
    return step.new is not None and isinstance(old, OldNorm) and old.shift is not None and not has_shift(step.new)


def _tried_on_weight(model: nn.Module, step: _Step, layer: str | None) -> _Step:
    """The step, with the reason if the new norm cannot be attached to the layer before."""
    if step.new is None:
        return step
    if layer is None:
        return replace(step, impossible="it acts on a layer's weight, and no layer directly before was found")
    try:
        attach_weight_norm(deepcopy(model.get_submodule(layer)), deepcopy(core(step.new)))
    except NormError as error:
        return replace(step, impossible=str(error))
    return step


def _refuse_impossible(steps: list[_Step], to: NormSpec) -> None:
    # The same reason for many layers is said once.
    reasons: dict[str, list[str]] = {}
    for step in steps:
        if step.impossible:
            reasons.setdefault(step.impossible, []).append(step.found.name)
    if reasons:
        listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        count = sum(map(len, reasons.values()))
        raise NormError(
            f"{to!r} cannot take the place of {count} of {len(steps)} norms, and nothing was changed. {listed}. "
            "Change the options, or leave these layers out by `where`"
        )


def _carried_out(model: nn.Module, step: _Step, layer: str | None) -> ConvertedNorm:
    """Put the new norm in, and say what was done."""
    found, old = step.found, step.found.known
    notes = [step.stays]
    if step.new is not None and isinstance(old, OldNorm):
        lost = left_behind(old, found.module, step.new)
        notes += [old.note, f"dropped: {', '.join(lost)}" if lost else ""]
        if _loses_shift(step):
            notes += [_bias_instead(model, layer)]
        if layer is not None:
            attach_weight_norm(model.get_submodule(layer), core(step.new))
        put(model, found, step.new)
    return ConvertedNorm(
        name=" = ".join(found.names),
        old=type(core(found.module)).__name__,
        new=None if step.new is None else type(core(step.new)).__name__,
        channels=old.channels if isinstance(old, OldNorm) else channels_of(found.module),
        layout=step.layout,
        note="; ".join(filter(None, notes)),
    )


def _bias_instead(model: nn.Module, layer: str | None) -> str:
    """Give the layer before a norm that has no shift a bias, and say so."""
    if layer is None:
        return "its shift is lost, for no layer directly before it was found that could have a bias"
    module: Any = model.get_submodule(layer)
    if module.bias is not None:
        return f"its shift is left to the bias of {layer!r}"
    channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    bias = torch.zeros(channels, device=module.weight.device, dtype=module.weight.dtype)
    module.bias = nn.Parameter(bias, requires_grad=module.weight.requires_grad)
    return f"it gives no shift, so {layer!r} got a bias of zeros"


def _without_fused_encoders(model: nn.Module, steps: list[_Step]) -> tuple[str, ...]:
    """Turn off torch's fused encoder layers around new norms: they read weight, bias and eps and call no norm."""
    changed = {name.rpartition(".")[0] for step in steps if step.new is not None for name in step.found.names}
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer) and name in changed:
            module.activation_relu_or_gelu = 0
            count += 1
        if isinstance(module, nn.TransformerEncoder):
            inside = f"{name}.layers." if name else "layers."
            if any(parent.startswith(inside) for parent in changed):
                module.use_nested_tensor = False
    return (f"torch's fused kernel was turned off in {count} nn.TransformerEncoderLayer",) if count else ()
