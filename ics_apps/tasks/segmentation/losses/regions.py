"""What the losses share: logits and target as probabilities and truth, class weights, means over classes.

How a target is read (multi-class or multi-label, ignored positions) is said in `tasks.segmentation.targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ics_apps.tasks.segmentation.targets import IGNORE, indicators, is_multi_label


class Regions(NamedTuple):
    r"""Probabilities and truth of the classes that a region loss compares.

    Attributes:
        p: probabilities, 0 where the target is ignored, (B, K', \*S).
        g: truth, 0 where the target is ignored, (B, K', \*S).
        known: 1 where the target is known, else 0, (B, 1 or K', \*S).
    """

    p: Tensor
    g: Tensor
    known: Tensor


def as_float(logits: Any) -> Tensor:
    """Logits in float32 whatever autocast made of them; float64 stays, so that gradients can be checked.

    Raises:
        TypeError: A net with deep supervision returned its list of outputs.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"a loss received a {type(logits).__name__} instead of one tensor of logits; wrap it in "
            "DeepSupervisionLoss for a net that returns its outputs at several scales."
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def regions(logits: Tensor, target: Tensor, background: bool = False) -> Regions:
    r"""Probabilities and truth: softmax and class indices, or sigmoid and labels.

    Args:
        logits: (B, K, \*S).
        target: (B, \*S) or (B, K, \*S).
        background: Keep class 0; K' is K then, else K - 1. Labels are all kept, none of them is background.

    Example:
        >>> found = regions(torch.zeros(1, 2, 3), torch.tensor([[0, 1, IGNORE]]))
        >>> found.p.tolist(), found.g.tolist()
        ([[[0.5, 0.5, 0.0]]], [[[0.0, 1.0, 0.0]]])
    """
    logits = as_float(logits)
    if is_multi_label(logits, target):
        return compared(logits.sigmoid(), target, background)
    return compared(F.softmax(logits, dim=1), target, background)


def compared(p: Tensor, target: Tensor, background: bool = False) -> Regions:
    r"""The same from probabilities (B, K, \*S)."""
    known = (target != IGNORE).to(p.dtype)
    if p.shape == target.shape:
        return Regions(p * known, target.to(p.dtype) * known, known)
    first = 0 if background else 1
    known = known.unsqueeze(1)
    return Regions(p[:, first:] * known, indicators(target, p.shape[1], first).to(p.dtype), known)


def position_sums(x: Tensor, per_case: bool) -> Tensor:
    r"""Sums of (B, K, \*S) over space, (B, K), and over the batch too unless `per_case`, (K)."""
    space = tuple(range(2, x.ndim))
    return x.sum(space) if per_case else x.sum((0, *space))


def class_mean(terms: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of terms (..., K'), each class by its weight; `weights` may still hold that of the background."""
    if weights is None:
        return terms.mean()
    weights = weights[len(weights) - terms.shape[-1] :].to(terms.dtype)
    return (terms * weights).sum(-1).mean() / weights.sum()


def known_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted values over the sum of weights; 0 where all weights are 0, that is where all is ignored."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def weight_tensor(class_weights: Sequence[float] | None) -> Tensor | None:
    """The weights of a loss as a tensor (K,), checked.

    Raises:
        ValueError: A weight is negative or all are 0.
    """
    if class_weights is None:
        return None
    if not class_weights or min(class_weights) < 0 or sum(class_weights) == 0:
        raise ValueError(
            f"class_weights are {list(class_weights)}; allowed are values >= 0, not all 0, one for each channel of "
            "the logits (the background included)."
        )
    return torch.tensor(class_weights, dtype=torch.float32)


def check_weights(weights: Tensor | None, num_classes: int) -> None:
    """Raise ValueError unless there are as many class weights as channels of the logits."""
    if weights is not None and len(weights) != num_classes:
        raise ValueError(
            f"class_weights has {len(weights)} values and the logits have {num_classes} channels; give one value a "
            "channel (the background included)."
        )
