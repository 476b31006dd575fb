"""Deep supervision: one loss at every scale that a net's decoder has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ics_apps.tasks.segmentation.losses.combined import DiceCELoss
from ics_apps.tasks.segmentation.losses.regions import as_float
from ics_apps.tasks.segmentation.targets import is_multi_label


class DeepSupervisionLoss(nn.Module):
    r"""A loss averaged over a net's outputs at several scales.

    .. math:: \sum_i w_i L(z_i, y_i), \quad w_i \propto 2^{-i}, \quad w_{last} = 0, \quad \sum_i w_i = 1

    with z_i the logits of scale i, the finest first, and y_i the target at their positions (nearest). The lowest scale
    has weight 0 unless it is the only one; it takes part with a gradient of 0, so that distributed training finds no
    unused parameter.

    The contract with a net: in training it returns a list or tuple of logits, (B, K, \*S_i), the finest first; in
    evaluation the finest alone, a tensor, of which this is the plain loss.

    Args:
        loss: The loss of one scale; None: `DiceCELoss()`.

    Shape:
        logits: tensors (B, K, \*S_i) or one (B, K, \*S); target (B, \*S) or (B, K, \*S); the loss is a float32 scalar.

    Example:
        >>> scales = [torch.zeros(1, 2, 8), torch.zeros(1, 2, 4)]
        >>> loss = DeepSupervisionLoss(DiceCELoss(dice_weight=0.0))
        >>> round(float(loss(scales, torch.zeros(1, 8, dtype=torch.long))), 6)  # ln(2)
        0.693147

    Reference: Isensee 2021 (nnU-Net) for the weights; Lee 2015.
    """

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss or DiceCELoss()

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of a batch."""
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        multi_label = is_multi_label(scales[0], target)
        total = torch.zeros((), dtype=as_float(scales[0]).dtype, device=scales[0].device)
        for weight, one in zip(scale_weights(len(scales)), scales, strict=True):
            if weight:
                nearest = nearest_target(target, one.shape[2:], first_axis=2 if multi_label else 1)
                total = total + weight * self.loss(one, nearest)
            else:
                total = total + 0.0 * as_float(one).sum()
        return total


def scale_weights(number: int) -> list[float]:
    """Weights of `number` scales, the finest first.

    Example:
        >>> [round(15 * weight, 6) for weight in scale_weights(5)]
        [8.0, 4.0, 2.0, 1.0, 0.0]
    """
    if number == 1:
        return [1.0]
    halved = [0.5**i for i in range(number - 1)]
    return [*(weight / sum(halved) for weight in halved), 0.0]


def nearest_target(target: Tensor, size: Sequence[int], first_axis: int) -> Tensor:
    r"""The target at the centres of a coarser (or finer) grid's positions; a tie takes the later position.

    Args:
        target: (B, \*S) or (B, K, \*S), of any type.
        size: The grid's number of positions along each axis.
        first_axis: The first axis of space: 1 or 2.

    Example:
        >>> nearest_target(torch.tensor([[0, 1, 2, 3, 4, 5]]), [2], first_axis=1).tolist()
        [[1, 4]]
    """
    for axis, wanted in enumerate(size, start=first_axis):
        present = target.shape[axis]
        if present != wanted:
            # Whole numbers: floor((i + 1/2) present / wanted) without rounding.
            index = (2 * torch.arange(wanted, device=target.device) + 1) * present // (2 * wanted)
            target = target.index_select(axis, index)
    return target
