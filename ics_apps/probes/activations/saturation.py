"""From which value on an activation passes almost no gradient.

Only the thresholds live here; counting against them is done in `moments` and `recorder`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

# An element is saturated where the derivative is below this share of the largest derivative.
SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Tails:
    """An activation is saturated where its output (or input) is `<= low` or `>= high`.

    Attributes:
        side: which side of the activation the thresholds apply to. GELU, SiLU and Mish are not monotone, so an output
            near zero does not tell the tail from the middle: their input is looked at.
        low: lower threshold, -inf if there is no lower tail.
        high: upper threshold, inf if there is no upper tail.
    """

    side: Literal["output", "input"]
    low: float
    high: float


def tails_of(module: nn.Module) -> Tails | None:
    """Where an activation saturates: its derivative is below 5 % of its maximum.

    Sigmoid: y(1-y) < 0.05/4. Tanh: 1-y^2 < 0.05. Softsign: (1-|y|)^2 < 0.05. ELU, CELU, SELU, Softplus: lower tail.
    Hardsigmoid, Hardtanh: at the clipped ends. ReLU6: at the upper end only, since its zeros are counted as zeros.
    Hardswish, GELU, SiLU (Swish), Mish: lower tail of the input.

    Args:
        module: any module; classes of timm and transformers with these names are known too.

    Returns:
        The thresholds, or None where saturation is not defined (ReLU, PReLU, Softmax, layers that are no activation).

    Example:
        >>> tails_of(nn.Hardtanh(-2.0, 2.0))
        Tails(side='output', low=-2.0, high=2.0)
        >>> tails_of(nn.ReLU()) is None
        True

    Reference: the 5 % rule is ours; Glorot and Bengio 2010 (Fig. 2) watch the same tails by percentiles.
    """
    for base in type(module).__mro__:
        name = base.__name__.lower()
        if name in _PARAMETRIC:
            return _parametric(name, module)
        if name in _FIXED:
            return _FIXED[name]
    return None


def _parametric(name: str, module: nn.Module) -> Tails:
    alpha = float(getattr(module, "alpha", 1.0))
    if name == "hardtanh":
        return Tails("output", float(getattr(module, "min_val", -1.0)), float(getattr(module, "max_val", 1.0)))
    if name == "elu":
        return Tails("output", -alpha + SHARE * max(1.0, alpha), math.inf)
    if name == "celu":
        return Tails("output", -(1 - SHARE) * alpha, math.inf)
    return Tails("output", -math.log1p(-SHARE) / float(getattr(module, "beta", 1.0)), math.inf)


def _lower_output(threshold: float) -> Tails:
    return Tails("output", threshold, math.inf)


def _lower_input(threshold: float) -> Tails:
    return Tails("input", threshold, math.inf)


def _symmetric(threshold: float) -> Tails:
    return Tails("output", -threshold, threshold)


_SIGMOID_EDGE: Final = (1 - math.sqrt(1 - SHARE)) / 2
_SELU_SLOPE: Final = 1.0507009873554805 * 1.6732632423543772  # its largest derivative, at 0 from below
# Where |f'| falls below 5 % of its maximum for good; solved by bisection, checked by a test against autograd.
_GELU: Final = _lower_input(-2.27856)
_GELU_TANH: Final = _lower_input(-2.28570)
_SILU: Final = _lower_input(-3.92990)
_MISH: Final = _lower_input(-3.98125)

_PARAMETRIC: Final = frozenset({"hardtanh", "elu", "celu", "softplus"})
_FIXED: Final[dict[str, Tails]] = {
    "gelu": _GELU,
    "geluactivation": _GELU,
    "gelutanh": _GELU_TANH,
    "hardsigmoid": Tails("output", 0.0, 1.0),
    "hardswish": _lower_input(-3.0),
    "logsigmoid": Tails("output", -math.inf, math.log1p(-SHARE)),
    "mish": _MISH,
    "newgeluactivation": _GELU_TANH,
    "pytorchgelutanh": _GELU_TANH,
    "relu6": Tails("output", -math.inf, 6.0),
    "selu": _lower_output(-(1 - SHARE) * _SELU_SLOPE),
    "sigmoid": Tails("output", _SIGMOID_EDGE, 1 - _SIGMOID_EDGE),
    "silu": _SILU,
    "softsign": _symmetric(1 - math.sqrt(SHARE)),
    "swish": _SILU,
    "tanh": _symmetric(math.sqrt(1 - SHARE)),
}
