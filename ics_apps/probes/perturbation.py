"""Whether one sample's output changes when the other samples of its batch do; gradients are asked in `leakage`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ics_apps.probes.leakage import names_of
from ics_apps.probes.preserve import ProbeError, Surroundings, preserved
from ics_apps.probes.sample_axis import SampleAxis, is_data


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What `perturbation_leakage` found.

    Attributes:
        leaks: the largest change is above the tolerance.
        largest: max |f(X')_i - f(X)_i| / max |f(X)_i|, the largest over all outputs.
        tolerance: what it was compared with.
        source: the first module whose output for sample i changed while its inputs for i did not; None if there is
            none. It hides those behind it.
    """

    leaks: bool
    largest: float
    tolerance: float
    source: str | None


def perturbation_leakage(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch_axis: int = 0,
    sample: int | None = None,
    tolerance: float = 0.0,
    name: str = "",
) -> Perturbation:
    """Whether the output of sample i changes when every other sample is replaced.

    Each other sample becomes the next other one, and the last a copy of sample i: all of them change, and so does what
    they are together, while all stay samples of the data. It sees what gradients cannot: statistics without gradient,
    argmax, top-k, sorting, integers; of a choice that comes out the same by chance another batch shows more.

    Two forward passes of the same batch size, with the same random numbers and buffers, so that kernels do the same
    arithmetic: the tolerance 0 asks for equal bits. Give 1e-6 where a kernel adds in no fixed order (some on a GPU do),
    or where a layer chooses its kernel by the values of the whole batch.

    Args:
        model: as in `gradient_leakage`.
        args: as there.
        kwargs: as there.
        batch_axis: as there.
        sample: as there.
        tolerance: the largest relative change that counts as none, >= 0.
        name: as there.

    Raises:
        ProbeError: a batch of one, all samples alike, no input or no output with a batch axis, or an output that is not
            finite.
        ValueError: an argument out of range.

    Example:
        >>> class Above(nn.Module):
        ...     def forward(self, x):
        ...         return x * (x > x.mean(0))
        >>> perturbation_leakage(nn.Sequential(nn.Identity(), Above()), [torch.tensor([[9.0], [3.0], [2.0]])]).source
        '1'

    Reference: ours.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; give at least 0.")
    inputs = (tuple(args), dict(kwargs or {}))
    samples = SampleAxis.of(inputs, batch_axis, sample)
    given = tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)
    replaced = tree_map_only(Tensor, samples.with_others_replaced, given)
    pairs = zip(tree_leaves(given), tree_leaves(replaced), strict=True)
    if all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor)):
        raise ProbeError("All samples of the batch are alike: give samples that differ.")
    with preserved(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        surroundings = Surroundings(model)
        before = _calls(model, samples, given)
        surroundings.restore()
        after = _calls(model, samples, replaced)
    largest = _change(before[-1].outputs, after[-1].outputs)
    if math.isnan(largest):
        raise ProbeError("An output of the model is not finite: measure earlier, or with another batch.")
    return Perturbation(
        largest > tolerance, largest, tolerance, _source(before, after, tolerance, names_of(model, name))
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a module: what it was given and what it gave of the sample."""

    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


def _calls(model: nn.Module, samples: SampleAxis, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[_Call]:
    """All calls in the order in which they end: the innermost first, the model last."""
    calls: list[_Call] = []
    with _hooked(model, samples, calls):
        args, kwargs = inputs
        output = model(*args, **kwargs)
    if not calls[-1].outputs:
        raise samples.refusal([x for x in tree_leaves(output) if isinstance(x, Tensor)])
    return calls


@contextmanager
def _hooked(model: nn.Module, samples: SampleAxis, calls: list[_Call]) -> Iterator[None]:
    entered: list[list[Tensor]] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(_parts((args, kwargs), samples))

    def after(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        calls.append(_Call(module, entered.pop(), _parts(output, samples)))

    with ExitStack() as stack:
        for module in set(model.modules()):
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield


def _parts(tree: Any, samples: SampleAxis) -> list[Tensor]:
    """Of each tensor what belongs to the sample, copied; tensors in which it cannot be told are left out."""
    found = [x for x in tree_leaves(tree) if is_data(x) or (isinstance(x, Tensor) and x.dtype is torch.bool)]
    return [samples.part(x, axes[0]).detach().clone() for x in found if (axes := samples.axes_of(x))]


def _source(
    before: Sequence[_Call], after: Sequence[_Call], tolerance: float, names: Mapping[nn.Module, str]
) -> str | None:
    for first, second in zip(before, after, strict=False):
        if first.module is not second.module:
            return None  # another way was taken through the model
        if _change(first.inputs, second.inputs) <= tolerance < _change(first.outputs, second.outputs):
            return names[first.module]
    return None


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change, relative to the largest value of its tensor; NaN if a value is not finite."""
    changes = [0.0]
    for x, y in zip(before, after, strict=False):
        if x.shape != y.shape:
            return math.inf
        if x.numel():
            scale, change = float(x.double().abs().max()), float((x.double() - y.double()).abs().max())
            changes.append(change / scale if scale else (math.inf if change > 0 else change))
    return math.nan if any(math.isnan(change) for change in changes) else max(changes)
