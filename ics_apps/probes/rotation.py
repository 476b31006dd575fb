"""How far an optimizer's step turns scale-invariant weights, what it will come to, and what weight decay does to them.

Which weights these are is `scale_invariance`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True, slots=True)
class StepRule:
    """What an optimizer's step does to scale-invariant weights.

    With learning rate eta and weight decay lambda, and gradients that are independent from step to step, a step turns
    such a weight by, in equilibrium, sqrt(2 eta lambda) rad (SGD), sqrt(2 eta lambda / (1 + a)) (momentum a),
    sqrt(2 eta lambda ((1 - a) (1 + a)^2 + a^4 / (1 + a))) (Nesterov's) or sqrt(2 eta lambda (1 - b1) / (1 + b1))
    (AdamW), whatever the loss, and it takes about 1 / (2 eta lambda) steps to get there, 1 - a times as many under
    momentum. A change of direction by eta |g| / |W|, and |g| in proportion to 1 / |W|, make eta / |W|^2 the effective
    learning rate of SGD; that of Adam, whose steps do not depend on |g|, is eta / |W|.

    Attributes:
        lr: eta.
        weight_decay: lambda.
        power: of the length in the effective learning rate; NaN if the optimizer is not known.
        equilibrium_rotation: in radians a step; NaN without weight decay, and where it is not known: for other
            optimizers, dampening, and Adam with an L2 term in its gradient, which is not AdamW.
        equilibrium_steps: about how many steps it takes; NaN likewise.

    Reference: Kosson et al. 2023 (2305.17212); Nesterov's derived in the same way.
    """

    lr: float
    weight_decay: float
    power: float = math.nan
    equilibrium_rotation: float = math.nan
    equilibrium_steps: float = math.nan

    @classmethod
    def of(cls, optimizer: Optimizer, parameter: nn.Parameter) -> StepRule:
        """The rule by which an optimizer moves a parameter now.

        Raises:
            ValueError: the optimizer does not move it.

        Example:
            >>> layer = nn.Linear(2, 2)
            >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
            >>> rule = StepRule.of(optimizer, layer.weight)
            >>> round(rule.equilibrium_rotation, 4), round(rule.equilibrium_steps), rule.effective_lr(2.0)
            (0.0324, 50, 0.025)
        """
        group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
        if group is None:
            raise ValueError("The optimizer does not move this parameter; give the one that does.")
        lr, weight_decay = float(group["lr"]), float(group.get("weight_decay", math.nan))
        kind = type(optimizer)
        if kind is SGD:
            a = float(group["momentum"])
            spread = (1 - a) * (1 + a) ** 2 + a**4 / (1 + a) if group["nesterov"] else 1 / (1 + a)
            known, power, delay = not (a and group["dampening"]), 2.0, 1 - a
        elif kind in (Adam, AdamW):
            b1 = float(group["betas"][0])
            spread = (1 - b1) / (1 + b1)
            known, power, delay = bool(kind is AdamW or group.get("decoupled_weight_decay")), 1.0, 1.0
        else:
            return cls(lr, weight_decay)
        if not known or lr * weight_decay <= 0:
            return cls(lr, weight_decay, power)
        pull = 2 * lr * weight_decay
        return cls(lr, weight_decay, power, math.sqrt(pull * spread), delay / pull)

    def effective_lr(self, norm: float) -> float:
        """How fast a weight of this length turns: eta / |W|^2 or eta / |W|."""
        return self.lr / norm**self.power if norm > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far one step has turned a scale-invariant weight.

    Attributes:
        layer: name of the weight.
        norm: its length before the step, with the bias that is scaled along.
        effective_lr: see `StepRule.effective_lr`.
        rotation: the angle between the weight before and after the step, in radians.
        expected_rotation: that of the equilibrium; NaN if it is not known.
        weight_decay: lambda.
        equilibrium_steps: about how many steps lead to the equilibrium.
    """

    layer: str
    norm: float
    effective_lr: float
    rotation: float
    expected_rotation: float
    weight_decay: float
    equilibrium_steps: float


def angle(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The angle between two vectors, each given in pieces, in radians from 0 to pi; NaN if one is 0.

    2 atan2(|u - v|, |u + v|) of their unit vectors, exact where a cosine has lost all its digits.

    Example:
        >>> round(angle([torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1e-6])]), 12)
        1e-06

    Reference: Kahan, "How Futile are Mindless Assessments of Roundoff", section 12.
    """
    u, v = (torch.cat([piece.detach().double().flatten() for piece in pieces]) for pieces in (before, after))
    u, v = u / u.norm(), v / v.norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


def describe_weight_decay(rotations: Sequence[Rotation]) -> str:
    """What weight decay does to these weights, a sentence for each strength of it.

    Example:
        >>> row = Rotation("conv.weight", 2.0, 0.025, 0.05, 0.0324, 0.01, 50.0)
        >>> describe_weight_decay([row, row])  # doctest: +NORMALIZE_WHITESPACE
        'Weight decay 0.01 on these 2 weights does not shrink the function: it sets their rotation per step to 0.0324
        rad, reached after about 50 steps; now 0.05 rad (median).'

    Reference: van Laarhoven 2017 (1706.05350); Kosson et al. 2023 (2305.17212).
    """
    if not rotations:
        return "No weight is scale invariant: weight decay shrinks the function."
    alike: dict[tuple[str, ...], list[Rotation]] = {}
    for row in rotations:
        key = (f"{row.weight_decay:.3g}", f"{row.expected_rotation:.3g}", f"{row.equilibrium_steps:,.0f}")
        alike.setdefault(key, []).append(row)
    sentences = []
    for (decay, expected, steps), rows in alike.items():
        these = f"these {len(rows)} weights" if len(rows) > 1 else rows[0].layer
        now = f"now {statistics.median(row.rotation for row in rows):.3g} rad{' (median)' if len(rows) > 1 else ''}."
        their = "their" if len(rows) > 1 else "its"
        if decay == "0":
            sentences.append(
                f"No weight decay acts on {these}, so steps make {their} norm grow and turn less and less; {now}"
            )
        elif expected == "nan":
            sentences.append(
                f"Weight decay {decay} on {these} does not shrink the function: it sets {their} rotation per step, to "
                f"an angle that is not known here; {now}"
            )
        else:
            sentences.append(
                f"Weight decay {decay} on {these} does not shrink the function: it sets {their} rotation per step to "
                f"{expected} rad, reached after about {steps} steps; {now}"
            )
    return " ".join(sentences)
