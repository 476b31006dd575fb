"""Where the filters of a weight are: its output channels, whatever axis they lie on. Nothing is measured here."""

from __future__ import annotations

import math

from torch import nn


def filters_of(model: nn.Module, name: str) -> tuple[int, int, int, int]:
    """Shape (groups, inputs, outputs of a group, rest) in which axes 0 and 2 number the filters of a weight.

    Args:
        model: the model.
        name: of one of its parameters, with at least one axis.

    Example:
        >>> filters_of(nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2)), "0.weight")
        (2, 2, 3, 4)
    """
    module, shape = model.get_submodule(owner_of(name)), model.get_parameter(name).shape
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and len(shape) > 2 and shape[0] == module.in_channels:
        return module.groups, shape[0] // module.groups, shape[1], math.prod(shape[2:])
    if type(module).__name__ == "Conv1D":  # of transformers: (inputs, outputs)
        return 1, shape[0], shape[1], 1
    return 1, 1, shape[0], math.prod(shape[1:])


def owner_of(name: str) -> str:
    """Path of the module to which a parameter belongs; a parametrization shapes its owner's weight.

    Example:
        >>> owner_of("body.0.parametrizations.weight.original")
        'body.0'
    """
    parts = name.split(".")
    return ".".join(parts[: parts.index("parametrizations")] if "parametrizations" in parts else parts[:-1])
