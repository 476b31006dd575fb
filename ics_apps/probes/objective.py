"""The loss of one fixed batch as a function of the weights: what the probes differentiate.

Nothing is measured here; which weights are moved, and along what, is up to each probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from ics_apps.probes.preserve import ProbeError, Surroundings, Weights


class Objective:
    """L(w) of one batch, the same function at every call.

    Before each call the random generators and buffers are put back to where they were, so that dropout masks repeat
    and running statistics do not wander; the modes stay as they are, so a batch norm in training uses its batch's own
    statistics. When the `with` block ends the model is as it was, to the bit: weights, gradients, buffers, modes,
    random numbers, states of metrics and of the optimizers named.

    Code compiled by torch runs eagerly inside, as it cannot be differentiated twice. What the loss changes in its batch
    stays changed: a loss that works in place has to be given a copy each time.

    Args:
        model: the model.
        loss: computes the scalar loss of the batch, with its graph; called often.
        optimizers: those that step inside the block; their states are put back.
        grad_scale: what losses are multiplied by before they are differentiated, and gradients divided by (float16).

    Attributes:
        names: names of the parameters that require a gradient; a tied one has the first of its names.
        parameters: those parameters, each once.

    Raises:
        ProbeError: no parameter requires a gradient; or, when called, the loss is no scalar, has no graph, is not
            finite or goes through a reentrant checkpoint.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(3.0)
        >>> with Objective(model, lambda: model(torch.ones(1, 1)).square().sum()) as objective:
        ...     objective.value(), objective.gradient()[0].item()
        (9.0, 6.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[], Tensor],
        *,
        optimizers: Sequence[Optimizer] = (),
        grad_scale: float = 1.0,
    ) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not named:
            raise ProbeError("No parameter of the model requires a gradient: unfreeze the part to be measured.")
        self.model = model
        self.names = tuple(name for name, _ in named)
        self.parameters = tuple(parameter for _, parameter in named)
        self.grad_scale = grad_scale
        self._loss = loss
        self._optimizers = optimizers
        self._kept: tuple[Surroundings, Weights] | None = None
        self._inside = ExitStack()
        self._is_seen = False

    def __enter__(self) -> Self:
        self._kept = Surroundings(self.model), Weights(self.model, self._optimizers)
        # Not only around the forward: a checkpointed part runs again in the backward.
        self._inside.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._inside.close()
        if self._kept is not None:
            surroundings, weights = self._kept
            weights.restore()
            surroundings.restore()
            self._kept = None

    def loss(self) -> Tensor:
        """The loss at the present weights, a scalar with its graph."""
        if self._kept is None:
            raise RuntimeError("The objective is closed: use it inside `with Objective(...) as objective:`.")
        self._kept[0].restore()
        with torch.enable_grad():
            loss = _checked(self._loss())
        if not self._is_seen:
            _check_graph(loss)
            self._is_seen = True
        return loss

    def twice_differentiable_loss(self) -> Tensor:
        """The same for second derivatives, of which fused attention has none: from now on it takes plain operations."""
        self._inside.enter_context(sdpa_kernel(SDPBackend.MATH))
        return self.loss()

    def value(self) -> float:
        """The loss at the present weights."""
        return float(self.loss().detach())

    def gradient(self, of: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The gradient of the loss at the present weights, unscaled.

        Args:
            of: with respect to these; None for all `parameters`.

        Returns:
            One tensor each, zeros for one that the loss does not depend on.
        """
        return self.value_and_gradient(of)[1]

    def value_and_gradient(self, of: Sequence[Tensor] | None = None) -> tuple[float, list[Tensor]]:
        """Both, from one forward pass."""
        inputs = list(self.parameters if of is None else of)
        value, found = self.value_and_parts(inputs)
        return value, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]

    def value_and_parts(self, of: Sequence[Tensor]) -> tuple[float, list[Tensor | None]]:
        """The same, with None for what the loss does not depend on."""
        with torch.enable_grad():
            loss = self.loss()
            scaled = loss * self.grad_scale
        found = torch.autograd.grad(scaled, list(of), allow_unused=True)
        return float(loss.detach()), [None if g is None else g.detach() / self.grad_scale for g in found]

    def weights(self) -> list[Tensor]:
        """A copy of the present weights."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def set_weights(self, weights: Sequence[Tensor]) -> None:
        """Move to these weights."""
        for parameter, content in zip(self.parameters, weights, strict=True):
            parameter.data.copy_(content)

    @contextmanager
    def at(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """At these weights inside the block, and back to the present ones."""
        present = self.weights()
        self.set_weights(weights)
        try:
            yield
        finally:
            self.set_weights(present)


def _checked(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        received = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ProbeError(f"The loss is {received}; give a function that returns a scalar tensor.")
    if not loss.requires_grad:
        raise ProbeError("The loss has no graph: compute it from the model's output, without detach or no_grad.")
    if not bool(torch.isfinite(loss.detach()).all()):
        raise ProbeError(f"The loss is {float(loss.detach())}: there is nothing to differentiate; measure earlier.")
    return loss.reshape(())


def _check_graph(loss: Tensor) -> None:
    """A reentrant checkpoint hides the weights inside: their gradients would be taken for zero."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ProbeError(
                "The model checkpoints with use_reentrant=True, which shows no weights to a probe: set it to False."
            )
        waiting.extend(following for following, _ in node.next_functions)
