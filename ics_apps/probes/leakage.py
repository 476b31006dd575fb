"""Whether one sample's output depends on the other samples of its batch, and which modules bring that about.

What the company of a sample does to a discriminator's logit is `batch_composition`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ics_apps.nearest import did_you_mean
from ics_apps.probes.isolation import Isolation
from ics_apps.probes.preserve import preserved
from ics_apps.probes.sample_axis import SampleAxis
from ics_apps.probes.selection import plain_name

_REMEDY: Final = (
    "Use a norm that looks at each sample alone (group, layer, instance, rms), give samples that must not meet (real "
    "and fake) batches of their own, or name the module in `allow` if it is meant to mix."
)


@dataclass(frozen=True, slots=True)
class ModuleLeakage:
    """What one module does to samples that reach it apart.

    Attributes:
        module: its names, joined by `+`; "" for the model itself.
        order: place in the order of the first calls, from 0.
        ratio: R of its own code, that of modules called inside left out; 0: it keeps samples apart; NaN: no gradient of
            an output passes where it could be read.
        is_source: the ratio is above 0.
        allowed: it is on the allow list, or inside a module that is.
        type: its class.
    """

    module: str
    order: int
    ratio: float
    is_source: bool
    allowed: bool
    type: str


@dataclass(frozen=True, slots=True)
class Leakage:
    """What `gradient_leakage` found.

    Attributes:
        ratio: R of the whole model, from its inputs to its outputs. Exactly 0 where there is no path; infinite where a
            sample's output depends on others only; NaN where modules mix but no gradient arrives at the inputs.
        batch: B.
        modules: all modules that were called, in the order of their first calls.
    """

    ratio: float
    batch: int
    modules: tuple[ModuleLeakage, ...]

    @property
    def sources(self) -> tuple[ModuleLeakage, ...]:
        """The modules that mix samples and are not allowed to."""
        return tuple(module for module in self.modules if module.is_source and not module.allowed)

    def describe(self) -> str:
        """Which modules mix, how much, and what to do, in a few sentences."""
        if not self.sources:
            allowed = any(module.is_source for module in self.modules)
            return f"No module {'that is not allowed to mixes' if allowed else 'mixes'} the samples of a batch."
        named = [f"{module.module or 'the model'} ({module.type}), ratio {module.ratio:.2g}" for module in self.sources]
        shown = "; ".join(named[:5]) + (f"; and {len(named) - 5} more" if len(named) > 5 else "")
        return (
            f"One sample's output depends on the other {self.batch - 1} of its batch, ratio {self.ratio:.2g} in all. "
            f"Samples are mixed by {shown}. {_REMEDY}"
        )


def gradient_leakage(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch_axis: int = 0,
    sample: int | None = None,
    allow: Iterable[str] = (),
    name: str = "",
) -> Leakage:
    """Whether the output of sample i depends on sample j, by gradients; every module that mixes is named.

    With s = <f(X)_i, r>, r standard normal from a generator of its own, G = ds/dX:

        R = mean over j != i of ||G_j|| / ||G_i||.

    The norm of a sample's gradient runs over all inputs that have the batch axis (for tokens: the outputs of
    `nn.Embedding`), in float64. Batch norm over m = B S values has R > 0 that falls as 1/B; for what keeps samples
    apart R is exactly 0, not small, as there is no path.

    The modules are told apart in one forward and one backward pass: wherever a module is entered or left, the gradient
    that arrives is read, then replaced by a new random one that is 0 but for sample i. So each module is given samples
    apart whatever comes behind it, and what is read says what its own code does: the innermost module is named, all
    that mix are, and a layer of zeros behind a module does not hide it (its own zeros do, such as a batch norm's weight
    that starts at 0, until they have moved). The ratio of a module is the largest of those read inside it. If none
    mixes, R of the model is 0; else a second backward pass through the same graph gives it.

    Gradients see neither statistics taken without gradient nor argmax, sorting, or integer arithmetic before an
    embedding: `perturbation_leakage` does. At an axis the batch is known by its size: `batch_axis` where that has the
    size, else the only axes that have; best is a batch as large as no other axis. Tensors without such an axis, among
    them those with several rows a sample, (B T, C), and those in lists and dicts given to modules inside are not read;
    what mixes there is put down to the module around.

    Args:
        model: in the mode to be judged. It is left as it was, to the bit; weights get no gradient.
        args: its arguments: tensors, nested in any way, and others.
        kwargs: its keyword arguments.
        batch_axis: axis of the inputs along which samples lie, >= 0.
        sample: i; None for the middle one, so that what looks only forward or only backward is seen.
        allow: modules that may mix, with all inside them: dotted names, name patterns, class names.
        name: name of `model` inside a larger one, put before those of its modules.

    Raises:
        ProbeError: a batch of one, no input or no output with a batch axis, no output that depends on the inputs, or a
            gradient that is not finite.
        ValueError: an argument out of range, or an entry of `allow` that matches no module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> found = gradient_leakage(model, [torch.randn(8, 1, 6, 6)])
        >>> 0 < found.ratio < 1, [module.module for module in found.sources]
        (True, ['1'])
        >>> gradient_leakage(model.eval(), [torch.randn(8, 1, 6, 6)]).ratio
        0.0

    Reference: ours; the gradient of one sample's output after Lightning Bolts' BatchGradientVerification, which turns
        batch norm off first and so cannot see it.
    """
    samples = SampleAxis.of((args, kwargs or {}), batch_axis, sample)
    names = names_of(model, name)
    allowed = _allowed(names, allow)
    run = Isolation(samples)
    eager = torch.compiler.set_stance("force_eager")
    with preserved(model), _frozen(model), torch.enable_grad(), eager, run.hooked(model):
        outputs = run.forward(model, args, kwargs or {})
        run.isolate(outputs)
        mixes = any(ratio > 0 for ratio in run.ratios.values())
        ratio = run.whole_ratio(outputs) if mixes else 0.0
    modules = []
    for order, module in enumerate(run.called):
        own = run.ratios.get(module, math.nan)
        modules.append(ModuleLeakage(names[module], order, own, own > 0, module in allowed, type(module).__name__))
    return Leakage(ratio, samples.size, tuple(modules))


def names_of(model: nn.Module, name: str = "") -> dict[nn.Module, str]:
    """The dotted names of all modules, "" for the model; those of a shared one are joined by `+`.

    Args:
        model: the model.
        name: its name inside a larger one.

    Example:
        >>> act = nn.ReLU()
        >>> list(names_of(nn.Sequential(act, nn.Identity(), act), "net").values())
        ['net', 'net.0+net.2', 'net.1']
    """
    names: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        full = plain_name(f"{name}.{path}".strip("."))
        known = names.setdefault(module, [])
        if full not in known:
            known.append(full)
    return {module: "+".join(paths) for module, paths in names.items()}


def _allowed(names: Mapping[nn.Module, str], allow: Iterable[str]) -> set[nn.Module]:
    """The modules that match, and all inside them."""
    allowed: set[nn.Module] = set()
    for entry in allow:
        matched = [module for module, name in names.items() if _matches(entry, module, name.split("+"))]
        if not matched:
            known = [*names.values(), *(type(module).__name__ for module in names)]
            raise ValueError(
                f"allow: {entry!r} matches no module of the model (a name, a pattern, a class name)"
                f"{did_you_mean(entry, known)}"
            )
        allowed.update(part for module in matched for part in module.modules())
    return allowed


def _matches(entry: str, module: nn.Module, names: Sequence[str]) -> bool:
    classes = [base.__name__ for base in type(module).__mro__[:-2]]
    return entry in classes or any(entry == name or fnmatch.fnmatchcase(name, entry) for name in names)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, only what is made from the inputs has a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
