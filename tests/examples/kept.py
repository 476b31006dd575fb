"""The outputs of a layer and the gradients with respect to them, which the monitor's figures are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Every value of an output of up to 65,535, and of a gradient of up to 16,383.
ALL = 65_535


class Kept:
    """Every output of a layer in training, and the gradient with respect to each that gets one."""

    def __init__(self, module: nn.Module) -> None:
        self.outputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        x = (
            output
            if isinstance(output, Tensor)
            else next(iter(output.values() if hasattr(output, "values") else output))
        )
        if module.training:
            self.outputs.append(x.detach().clone())
            if x.requires_grad:
                x.register_hook(lambda gradient: self.gradients.append(gradient.clone()))


def rms(x: Tensor | Sequence[Tensor]) -> float:
    """Root of the mean square, in float64."""
    values = x if isinstance(x, Tensor) else torch.cat([part.flatten() for part in x])
    return float(values.double().square().mean().sqrt())
