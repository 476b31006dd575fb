"""The backward pass in which each module of a model is given gradients of one sample only.

What its figures mean, and what they say of a model, is in `leakage`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ics_apps.norms.recompute import in_recompute
from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.sample_axis import SampleAxis, is_data

SEED: Final = 0


class _Marked(torch.autograd.Function):
    """The identity; the gradient that arrives is handed to `visit`, and what that returns goes on.

    The output shares memory with the input but is no view of it to autograd, so that modules may write into it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, visit: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.visit = visit
        return x.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.visit(gradients[0]), None


class Isolation:
    """One forward pass with marks wherever a module is entered or left, and the backward passes through it.

    A mark belongs to the module whose code has used the tensor: that of a module's input to the module, that of its
    output to the module that called it. While `isolate` runs, each mark reads the gradient that arrives and hands on a
    random one that is 0 but for the sample that is looked at.

    Args:
        samples: where the samples lie, and which one is looked at.

    Attributes:
        ratios: after `isolate`, the largest R that a mark of each module has read.
        called: the modules, in the order of their first calls.
    """

    def __init__(self, samples: SampleAxis) -> None:
        self.samples = samples
        self.ratios: dict[nn.Module, float] = {}
        self.called: dict[nn.Module, None] = {}
        self._running: list[nn.Module] = []
        self._sources: list[Tensor] = []
        self._fewest_axes = 0  # of an embedding's input, if it holds samples; 0 if the inputs have no integers
        self._inputs: set[int] = set()  # where those copies of the inputs lie in memory that are integers
        self._isolating = False
        self._generator: torch.Generator | None = None

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Inside, the calls of the model's modules are marked."""
        with ExitStack() as stack:
            for module in set(model.modules()):
                for handle in (
                    module.register_forward_pre_hook(self._before, with_kwargs=True),
                    module.register_forward_hook(self._after, with_kwargs=True),
                ):
                    stack.callback(handle.remove)
            yield

    def forward(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The outputs that have a gradient and a batch axis."""
        integers = [x.ndim for x in tree_leaves((args, kwargs)) if self._is_ids(x)]
        self._fewest_axes = min(max(integers, default=0), 2)
        own_args, own_kwargs = tree_map_only(Tensor, lambda x: self._source(x, model), (list(args), dict(kwargs)))
        output = model(*own_args, **own_kwargs)
        found = [x for x in tree_leaves(output) if isinstance(x, Tensor) and is_data(x)]
        apart = [x for x in found if self.samples.axes_of(x)]
        if not apart:
            raise self.samples.refusal(found)
        outputs = [x for x in apart if x.requires_grad]
        if not self._sources or not outputs:
            raise ProbeError(
                "No output has a gradient with respect to the inputs or embeddings: give a call that has one, or use "
                "perturbation_leakage."
            )
        return outputs

    def isolate(self, outputs: Sequence[Tensor]) -> None:
        """Fill `ratios`."""
        self._isolating = True
        found = self._gradients(outputs)
        self._isolating = False
        if all(gradient is None for gradient in found):
            raise ProbeError("No output depends on the inputs: give the call whose outputs do.")

    def whole_ratio(self, outputs: Sequence[Tensor]) -> float:
        """R of the whole model."""
        squares = [
            self.samples.norms(gradient, self.samples.axis).square()
            for gradient in self._gradients(outputs)
            if gradient is not None
        ]
        return self.samples.ratio(torch.stack(squares).sum(0).sqrt())

    def _gradients(self, outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        self._generator = torch.Generator(outputs[0].device).manual_seed(SEED)
        directions = [self._direction(x, self.samples.axes_of(x)[0]) for x in outputs]
        return torch.autograd.grad(outputs, self._sources, directions, retain_graph=True, allow_unused=True)

    def _direction(self, x: Tensor, axis: int) -> Tensor:
        """Random values on this sample, 0 on all others."""
        direction = torch.zeros_like(x)
        part = self.samples.part(direction, axis)
        generator = self._generator
        device = generator.device if generator is not None else x.device
        part.copy_(torch.randn(part.shape, generator=generator, device=device))
        return direction

    def _source(self, x: Tensor, owner: nn.Module) -> Tensor:
        """A copy of an input, marked and with a gradient if it has one and holds samples."""
        copied = x.detach().clone()
        axis = self.samples.axis
        if self._is_ids(x):
            self._inputs.add(copied.untyped_storage().data_ptr())
        if not is_data(x) or not x.is_floating_point() or x.ndim <= axis or x.shape[axis] != self.samples.size:
            return copied
        self._sources.append(copied.requires_grad_())
        return self._mark(copied, owner)

    def _is_ids(self, x: Any) -> bool:
        """Whether integers hold samples along the batch axis."""
        axis = self.samples.axis
        known = isinstance(x, Tensor) and is_data(x) and not x.is_floating_point()
        return known and x.ndim > axis and x.shape[axis] == self.samples.size

    def _holds_samples(self, ids: Tensor) -> bool:
        """Whether an embedding looks up samples, not positions, of which there may be as many as samples."""
        is_input = ids.untyped_storage().data_ptr() in self._inputs
        return ids.ndim >= self._fewest_axes > 0 and (is_input or len(self.samples.axes_of(ids)) == 1)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if in_recompute():
            return None
        is_outermost = not self._running
        self._running.append(module)
        self.called.setdefault(module)
        if is_outermost:
            return None
        # Lists and dicts stay the same objects: a module may write into them.
        mark = functools.partial(self._mark, owner=module)
        is_shared = lambda node: isinstance(node, list | dict)  # noqa: E731
        own_args = tree_map_only(Tensor, mark, args, is_leaf=is_shared)
        return own_args, {key: tree_map_only(Tensor, mark, x, is_leaf=is_shared) for key, x in kwargs.items()}

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if in_recompute():
            return None
        self._running.pop()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and isinstance(output, Tensor):
            ids: Any = args[0] if args else kwargs["input"]
            if self._is_ids(ids) and self._holds_samples(ids):
                output = output.detach().clone().requires_grad_()
                self._sources.append(output)
        if not self._running:
            return output
        return tree_map_only(Tensor, functools.partial(self._mark, owner=self._running[-1]), output)

    def _mark(self, x: Tensor, owner: nn.Module) -> Tensor:
        axes = self.samples.axes_of(x) if x.requires_grad and is_data(x) else ()
        if not axes or _transformed():
            return x
        marked: Tensor = _Marked.apply(x, functools.partial(self._visit, owner, axes))
        return marked

    def _visit(self, owner: nn.Module, axes: Sequence[int], gradient: Tensor) -> Tensor:
        """Read the gradient that came out of the owner's code, and hand on one that is apart."""
        if not self._isolating:
            return gradient
        norms = {axis: self.samples.norms(gradient, axis) for axis in axes}
        if not all(bool(torch.isfinite(norm).all()) for norm in norms.values()):
            raise ProbeError(
                f"A gradient inside {type(owner).__name__} is not finite: measure earlier, or with another batch."
            )
        ratios = {axis: self.samples.ratio(norm) for axis, norm in norms.items()}
        axis = min(ratios, key=lambda axis: math.inf if math.isnan(ratios[axis]) else ratios[axis])
        if not math.isnan(ratios[axis]):
            self.ratios[owner] = max(self.ratios.get(owner, 0.0), ratios[axis])
        return self._direction(gradient, axis)


def _transformed() -> bool:
    """Whether a transform of `torch.func` is at work, which takes no marks."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0
