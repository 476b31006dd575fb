"""Dice and IoU of cases, from counts of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ics_apps.tasks.segmentation.metrics.foreground import Foreground
from ics_apps.tasks.segmentation.targets import IGNORE


class OverlapScores(Metric):
    r"""Dice and IoU of every case and foreground class.

    .. math:: Dice = \frac{2 TP}{2 TP + FP + FN}, \quad IoU = \frac{TP}{TP + FP + FN}

    Args:
        class_names: Names by class index; the first is background and is not scored.
        multi_label: Whether cases are labels (B, K, \*S), all of them scored, instead of class indices.

    Returns (compute):
        `dice`, `iou` (means) and `dice/<class>`, `iou/<class>`; NaN where no case had the class or a false positive.

    Example:
        >>> scores = OverlapScores(["background", "cell"])
        >>> scores.update(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 0]]))
        >>> round(float(scores.compute()["dice"]), 4)
        0.6667
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: list[Tensor]

    def __init__(self, class_names: Sequence[str], multi_label: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.foreground = Foreground(class_names, multi_label)
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        r"""Add cases: class indices (B, \*S) of prediction and truth, or labels (B, K, \*S)."""
        if self.foreground.multi_label:
            self.counts.append(label_counts(prediction, target))
        else:
            self.counts.append(case_counts(prediction, target, len(self.foreground.class_names))[:, 1:])

    def compute(self) -> dict[str, Tensor]:
        """The scores of all cases so far."""
        counts = torch.cat([c.reshape(-1, *c.shape[-2:]) for c in self.counts])
        dice, iou = _ratios(counts)
        return {**self.foreground.means("dice", dice), **self.foreground.means("iou", iou)}


def case_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    r"""Counts (B, K, 3) of true positives, false positives and false negatives per case and class.

    Args:
        prediction: Class indices (B, \*S).
        target: Class indices (B, \*S); positions with `IGNORE` are not counted.
        num_classes: K.
    """
    cases = []
    for one, truth in zip(prediction, target, strict=True):
        known = truth != IGNORE
        pairs = truth[known].long() * num_classes + one[known].long()
        table = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        hit = table.diagonal()
        cases.append(torch.stack([hit, table.sum(0) - hit, table.sum(1) - hit], dim=1))
    return torch.stack(cases)


def label_counts(prediction: Tensor, target: Tensor) -> Tensor:
    r"""The same counts (B, K, 3) of labels (B, K, \*S)."""
    found, true = (prediction > 0).flatten(2), (target > 0).flatten(2)
    found = found & (target != IGNORE).flatten(2)
    return torch.stack([(found & true).sum(2), (found & ~true).sum(2), (~found & true).sum(2)], dim=2)


def overlap(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and IoU (B, K-1) of the foreground classes from counts (B, K, 3); NaN where there is nothing to find."""
    return _ratios(counts[:, 1:])


def _ratios(counts: Tensor) -> tuple[Tensor, Tensor]:
    hit, false_positive, false_negative = counts.double().unbind(-1)
    wrong = false_positive + false_negative
    return 2 * hit / (2 * hit + wrong), hit / (hit + wrong)
