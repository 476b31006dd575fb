"""Losses of the segmentation task: Dice with cross-entropy. One class a loss, chosen by `class_path` in a recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DiceCELoss(nn.Module):
    r"""Cross-entropy plus soft Dice over the batch.

    .. math:: w_{ce} \, CE + w_{dice} \Big(1 - \frac{1}{K - 1} \sum_{k=1}^{K-1}
        \frac{2 \sum p_k g_k + s}{\sum p_k + \sum g_k + s}\Big)

    with p the softmax of the logits, g the one-hot truth, sums over the batch and space, and class 0 (background) left
    out. Summing over the batch keeps the gradient useful where a class is missing from single patches.

    Args:
        dice_weight: w_dice, at least 0.
        ce_weight: w_ce, at least 0.
        smooth: s, in positions; keeps an absent class finite.

    Shape:
        logits (B, K, \*S), target (B, \*S) with class indices; the loss is a scalar in float32.

    Example:
        >>> logits = torch.tensor([[[20.0, -20.0]], [[-20.0, 20.0]]]).reshape(1, 2, 1, 2)
        >>> round(float(DiceCELoss()(logits, torch.tensor([[[0, 1]]]))), 6)
        0.0

    Reference: Isensee 2021 (nnU-Net), which takes both terms with weight 1; smoothing in positions: ours.
    """

    def __init__(self, dice_weight: float = 1.0, ce_weight: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        if min(dice_weight, ce_weight) < 0 or dice_weight + ce_weight == 0:
            raise ValueError(
                f"DiceCELoss weights are dice {dice_weight} and ce {ce_weight}; allowed are values >= 0, not both 0."
            )
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        logits = logits.float()
        log_p = F.log_softmax(logits, dim=1)
        loss = self.ce_weight * F.nll_loss(log_p, target)
        if self.dice_weight:
            loss = loss + self.dice_weight * self._dice(log_p.exp(), target)
        return loss

    def _dice(self, p: Tensor, target: Tensor) -> Tensor:
        terms = []
        for k in range(1, p.shape[1]):
            g = (target == k).to(p.dtype)
            overlap = (p[:, k] * g).sum()
            terms.append(1 - (2 * overlap + self.smooth) / (p[:, k].sum() + g.sum() + self.smooth))
        return torch.stack(terms).mean()
