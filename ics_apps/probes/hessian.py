"""The Hessian of a batch's loss, as products with vectors; its eigenvalues are `lanczos` and `spectrum`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError


class Hessian:
    """H = d^2 L / dw^2 of one batch at the present weights, the parameters that require a gradient in one vector.

    L is the function that is trained: the model stays in the mode it is in, so a batch norm in training uses the
    statistics of the batch, and H has the terms by which they depend on the weights. Dropout masks are those of one
    draw. A tied parameter counts once, a frozen one not at all.

    H v is the derivative of <g, v>, g the gradient with its graph, which is built once and kept as long as this object:
    about twice the memory of a training step's activations. A product costs two to three gradients. Where g does not
    depend on the weights, as that of a linear loss, H is 0. Kinks (ReLU, max-pool) have second derivative 0, which is H
    almost everywhere.

    Under autocast the products are as coarse as its precision.

    Args:
        objective: the loss of the batch, open; the weights must stay where they are.

    Attributes:
        size: n, the number of weights.
        gradient: g, `(n,)`, in the widest dtype of the parameters, at least float32, on the first one's device.
        epsilon: relative rounding of the coarsest parameter's dtype.

    Raises:
        ProbeError: the loss cannot be differentiated twice.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> with Objective(model, lambda: model(torch.tensor([[1.0, 2.0]])).square().sum()) as objective:
        ...     Hessian(objective).product(torch.tensor([1.0, 0.0]))  # H = 2 x x'
        tensor([2., 4.])

    Reference: Pearlmutter 1994, Fast exact multiplication by the Hessian.
    """

    def __init__(self, objective: Objective) -> None:
        self._parameters = objective.parameters
        self._scale = objective.grad_scale
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.size = sum(self._sizes)
        self.epsilon = max(torch.finfo(parameter.dtype).eps for parameter in self._parameters)
        self._dtype = torch.float32
        for parameter in self._parameters:
            self._dtype = torch.promote_types(self._dtype, parameter.dtype)
        loss = objective.twice_differentiable_loss() * self._scale
        # A factor that requires a gradient, so that the backward of every operation leaves a trace in g's graph.
        found = self._derivative([loss * torch.ones_like(loss, requires_grad=True)], create_graph=True)
        self.gradient = self._flat(found)
        self._traced = [(place, g) for place, g in enumerate(found) if g is not None]
        # Asked for some inputs only, torch steps over what is marked as once differentiable, as if it were constant.
        if any(node.name().endswith("::Error") for node in _nodes([g for _, g in self._traced])):
            raise _not_twice("an operation of it is marked as once differentiable")

    def product(self, vector: Tensor) -> Tensor:
        """H v.

        Args:
            vector: v, `(n,)`.

        Returns:
            H v, `(n,)`, with the dtype and device of `gradient`.
        """
        if not self._traced:
            return torch.zeros_like(self.gradient)
        parts = torch.split(vector, self._sizes)
        along = [parts[place].view(g.shape).to(g) for place, g in self._traced]
        return self._flat(self._derivative([g for _, g in self._traced], along))

    def _derivative(
        self, outputs: Sequence[Tensor], along: Sequence[Tensor] | None = None, create_graph: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Of the outputs' sum, each weighted by `along`, with respect to each parameter; their graph is kept."""
        try:
            return torch.autograd.grad(
                outputs, self._parameters, along, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _not_twice(str(error)) from error

    def _flat(self, found: Sequence[Tensor | None]) -> Tensor:
        """Tensors of the parameters' shapes as one vector, unscaled; None is 0."""
        home = self._parameters[0].device
        parts = [
            torch.zeros(size, dtype=self._dtype, device=home)
            if part is None
            else part.detach().to(home, self._dtype).flatten() / self._scale
            for size, part in zip(self._sizes, found, strict=True)
        ]
        return torch.cat(parts)


def _nodes(tensors: Sequence[Tensor]) -> Iterator[Node]:
    """All operations in the graph of these."""
    seen: set[Node] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions)
            yield node


def _not_twice(reason: str) -> ProbeError:
    return ProbeError(
        f"The loss cannot be differentiated twice: {reason.partition(chr(10))[0].rstrip('.')}; give a loss of plain "
        "operations."
    )
