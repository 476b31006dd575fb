"""Losses made of losses: Dice with cross-entropy, and any weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses.cross_entropy import CrossEntropyLoss
from ics_apps.tasks.segmentation.losses.dice import check_smooth, dice_terms
from ics_apps.tasks.segmentation.losses.regions import as_float, compared, regions
from ics_apps.tasks.segmentation.targets import IGNORE, is_multi_label


class DiceCELoss(nn.Module):
    r"""Cross-entropy plus soft Dice over the batch.

    .. math:: w_{ce} \, CE + w_{dice} \Big(1 - \frac{1}{K - 1} \sum_{k=1}^{K-1}
        \frac{2 \sum p_k g_k + s}{\sum p_k + \sum g_k + s}\Big)

    with p the softmax of the logits, g the one-hot truth, sums over the batch and space, and class 0 (background) left
    out; for labels the sigmoid, binary cross-entropy, and all K of them. Summing over the batch keeps the gradient
    useful where a class is missing from single patches. `CombinedLoss` of `CrossEntropyLoss` and `DiceLoss` is the same
    with class weights.

    Args:
        dice_weight: w_dice, at least 0.
        ce_weight: w_ce, at least 0.
        smooth: s, in positions, >= 0; above 0 it keeps an absent class finite.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S); the loss is a scalar in float32.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[20.0, -20.0]], [[-20.0, 20.0]]]).reshape(1, 2, 1, 2)
        >>> round(float(DiceCELoss()(logits, torch.tensor([[[0, 1]]]))), 6)
        0.0

    Reference: Isensee 2021 (nnU-Net), which takes both terms with weight 1; smoothing in positions: ours.
    """

    def __init__(self, dice_weight: float = 1.0, ce_weight: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        check_smooth("DiceCELoss", smooth)
        if min(dice_weight, ce_weight) < 0 or dice_weight + ce_weight == 0:
            raise ValueError(
                f"DiceCELoss weights are dice {dice_weight} and ce {ce_weight}; allowed are values >= 0, not both 0."
            )
        self.dice_weight, self.ce_weight, self.smooth = dice_weight, ce_weight, smooth
        self._cross_entropy = CrossEntropyLoss()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        logits = as_float(logits)
        if is_multi_label(logits, target):
            cross_entropy, found = self._cross_entropy(logits, target), regions(logits, target)
        else:
            log_p = F.log_softmax(logits, dim=1)
            # As CrossEntropyLoss has it, but with the softmax that Dice needs too, and in torch's one pass.
            total = F.nll_loss(log_p, target, reduction="sum", ignore_index=IGNORE)
            cross_entropy = total / (target != IGNORE).sum().clamp(min=1)
            found = compared(log_p.exp(), target)
        loss: Tensor = self.ce_weight * cross_entropy
        if self.dice_weight:
            loss = loss + self.dice_weight * dice_terms(found, self.smooth).mean()
        return loss


class CombinedLoss(nn.Module):
    r"""A weighted sum of losses.

    .. math:: \sum_i w_i L_i

    In a recipe:

    .. code-block:: yaml

        loss:
          class_path: ics_apps.tasks.segmentation.losses.CombinedLoss
          init_args:
            losses:
              - class_path: ics_apps.tasks.segmentation.losses.DiceCELoss
              - class_path: ics_apps.tasks.segmentation.losses.BoundaryLoss
            weights: [1.0, 0.01]

    Args:
        losses: The terms, each a module of (logits, target).
        weights: One >= 0 for each; None: all 1.

    Raises:
        ValueError: There is no loss, or the weights do not fit.

    Example:
        >>> import torch
        >>> from ics_apps.tasks.segmentation.losses import CrossEntropyLoss
        >>> loss = CombinedLoss([CrossEntropyLoss(), CrossEntropyLoss()], [1.0, 0.5])
        >>> round(float(loss(torch.zeros(1, 2, 4), torch.zeros(1, 4, dtype=torch.long))), 6)  # 1.5 ln(2)
        1.039721

    Reference: ours.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(weights) != len(losses) or min(weights) < 0:
            raise ValueError(
                f"CombinedLoss has {len(losses)} losses and weights {weights}; allowed are one loss or more and one "
                "weight >= 0 for each."
            )
        self.losses, self.weights = nn.ModuleList(losses), weights

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        first, *others = (weight * loss(logits, target) for loss, weight in zip(self.losses, self.weights, strict=True))
        total: Tensor = sum(others, start=first)
        return total
