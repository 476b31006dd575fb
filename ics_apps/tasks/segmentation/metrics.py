"""Scores of whole cases: Dice and IoU from counts, and the 95 % Hausdorff distance. Losses are in `losses`.

Conventions, because they change the figures: a score is computed per case and class; where truth and prediction are
both empty it is not counted; a false positive on an empty truth counts 0. Means run over cases first, then over the
foreground classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric


class OverlapScores(Metric):
    r"""Dice and IoU of every case and foreground class.

    .. math:: Dice = \frac{2 TP}{2 TP + FP + FN}, \quad IoU = \frac{TP}{TP + FP + FN}

    Args:
        class_names: Names by class index; the first is background and is not scored.

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

    def __init__(self, class_names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = list(class_names)
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        r"""Add cases: class indices (B, \*S) of prediction and truth."""
        self.counts.append(case_counts(prediction, target, len(self.class_names)))

    def compute(self) -> dict[str, Tensor]:
        """The scores of all cases so far."""
        counts = torch.cat([c.reshape(-1, *c.shape[-2:]) for c in self.counts])
        dice, iou = overlap(counts)
        return {**_by_class("dice", dice, self.class_names), **_by_class("iou", iou, self.class_names)}


class HausdorffDistance95(Metric):
    r"""The larger of the two directed 95 % quantiles of distances between surfaces, in the spacing's unit.

    .. math:: HD_{95} = \max\big(Q_{.95}(d(P \to G)), Q_{.95}(d(G \to P))\big)

    A surface is the mask without its erosion by a cross; outside the image is background; quantiles interpolate
    linearly. Both empty: not counted. One empty: the image's diagonal, so that a miss is seen in the mean.

    Args:
        class_names: Names by class index; the first is background and is not scored.

    Returns (compute):
        `hd95` (mean) and `hd95/<class>`.

    Reference: the definition of MONAI 1.5 `HausdorffDistanceMetric(percentile=95)`, but for a miss, where MONAI gives
    NaN.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    distances: list[Tensor]

    def __init__(self, class_names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = list(class_names)
        self.add_state("distances", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor, spacing: Tensor) -> None:
        r"""Add cases: class indices (B, \*S) and the spacing (B, dim) of their axes."""
        for one, truth, steps in zip(prediction, target, spacing, strict=True):
            row = [
                hausdorff95((one == k).cpu().numpy(), (truth == k).cpu().numpy(), steps.tolist())
                for k in range(1, len(self.class_names))
            ]
            self.distances.append(torch.tensor([row], dtype=torch.float32, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """The distances of all cases so far."""
        rows = torch.cat([row.reshape(-1, len(self.class_names) - 1) for row in self.distances])
        return _by_class("hd95", rows, self.class_names)


def case_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts (B, K, 3) of true positives, false positives and false negatives per case and class."""
    cases = []
    for one, truth in zip(prediction, target, strict=True):
        pairs = truth.reshape(-1).long() * num_classes + one.reshape(-1).long()
        table = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        hit = table.diagonal()
        cases.append(torch.stack([hit, table.sum(0) - hit, table.sum(1) - hit], dim=1))
    return torch.stack(cases)


def overlap(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and IoU (B, K-1) of the foreground classes from counts (B, K, 3); NaN where there is nothing to find."""
    hit, false_positive, false_negative = counts[:, 1:].double().unbind(-1)
    wrong = false_positive + false_negative
    return 2 * hit / (2 * hit + wrong), hit / (hit + wrong)


def hausdorff95(prediction: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """The 95 % Hausdorff distance of two masks with one `spacing` per axis.

    Example:
        >>> a, b = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
        >>> a[2, 2] = b[2, 5] = True
        >>> hausdorff95(a, b, (1.0, 2.0))
        6.0
    """
    if not prediction.any() and not target.any():
        return math.nan
    if not prediction.any() or not target.any():
        return math.dist([0] * target.ndim, [n * step for n, step in zip(target.shape, spacing, strict=True)])
    predicted_edge, true_edge = _edge(prediction), _edge(target)
    there = _distances(predicted_edge, true_edge, spacing)
    back = _distances(true_edge, predicted_edge, spacing)
    return float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    edge: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    return edge


def _distances(origin: NDArray[np.bool_], goal: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    from scipy.ndimage import distance_transform_edt

    distances: NDArray[np.float64] = distance_transform_edt(~goal, sampling=spacing)[origin]
    return distances


def _by_class(name: str, scores: Tensor, class_names: Sequence[str]) -> dict[str, Tensor]:
    per_class = scores.nanmean(dim=0)
    named = {f"{name}/{label}": score for label, score in zip(class_names[1:], per_class, strict=True)}
    return {name: per_class.nanmean(), **named}
