"""Formulas with a first gradient of their own: fast once differentiated, and right to any order.

Automatic differentiation of a formula of five operations reads a large tensor some twenty times. A rule gives value and
first gradient in fewer passes; as soon as a gradient is itself differentiated, or a compiler, an exporter, `torch.func`
or another device than a CPU is at work, the formula in plain operations takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients: TypeAlias = tuple[Tensor | None, ...]
Wanted: TypeAlias = tuple[bool, ...]


@dataclass(frozen=True)
class Rule:
    """A formula, and how to get its value and first gradient fast.

    Attributes:
        formula: `(*inputs) -> y` in plain differentiable operations.
        forward: `(*inputs) -> (y, kept)`; `kept` are tensors that the gradient needs beside the inputs.
        backward: `(gradient, inputs, kept, wanted) -> gradients`, one of each input; None where `wanted` is False.
    """

    formula: Callable[..., Tensor]
    forward: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    backward: Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Wanted], Gradients]


def by_rule(rule: Rule, *inputs: Tensor) -> Tensor:
    """The formula's value, with the rule's first gradient.

    Example:
        >>> square = Rule(lambda x: x * x, lambda x: (x * x, ()), lambda g, inputs, kept, wanted: (2 * inputs[0] * g,))
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> torch.autograd.grad(by_rule(square, x), x)[0]
        tensor([6.])
    """
    if is_watched() or inputs[0].device.type != "cpu" or inputs[0].numel() == 0:
        return rule.formula(*inputs)
    y: Tensor = _ByRule.apply(rule, *inputs)
    return y


def is_watched() -> bool:
    """Whether something looks at the operations themselves: a compiler, `torch.func`, or forward-mode derivatives."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        # torch offers no public question for forward mode; the level is -1 outside it.
        or forward_ad._current_level >= 0
    )


class _ByRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, *inputs: Tensor) -> Tensor:
        y, kept = rule.forward(*inputs)
        ctx.rule, ctx.number = rule, len(inputs)
        ctx.save_for_backward(*inputs, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        inputs, kept = ctx.saved_tensors[: ctx.number], ctx.saved_tensors[ctx.number :]
        wanted = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *ctx.rule.backward(gradient, inputs, kept, wanted)
        chosen = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(ctx.rule.formula(*inputs), chosen, gradient, create_graph=True))
        return None, *(next(found) if want else None for want in wanted)
