"""Soft Dice: overlap of probabilities and truth, class by class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ics_apps.tasks.segmentation.losses.regions import Regions, class_mean, position_sums, regions
from ics_apps.tasks.segmentation.losses.weighted import ClassWeighted


class DiceLoss(ClassWeighted):
    r"""Soft Dice.

    .. math:: 1 - \frac{1}{K'} \sum_{k} \frac{2 \sum p_k g_k + s}{\sum p_k + \sum g_k + s}

    with p the softmax (sigmoid for labels) of the logits, g the truth, sums over space and batch, and the mean over the
    K' classes but the background. Ignored positions are in no sum.

    Args:
        per_case: Sum over the space of each case and average over cases. The gradient is of little use then where a
            class is missing from a patch.
        background: Count class 0 too. Labels have no background.
        smooth: s, in positions, >= 0; above 0, a class absent from truth and prediction costs 0.
        class_weights: The classes' weights in the mean, one a channel of the logits; None: all alike.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S); the loss is a scalar in [0, 1], float32.

    Raises:
        ValueError: `smooth` is negative, or the weights are none.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[20.0, -20.0]], [[-20.0, 20.0]]]).reshape(1, 2, 1, 2)
        >>> round(float(DiceLoss()(logits, torch.tensor([[[0, 1]]]))), 6)
        0.0

    Reference: Milletari 2016; this denominator and s as in MONAI `DiceLoss` (there per case, with background and
    s = 1e-5 unless told otherwise); nnU-Net's is this minus 1.
    """

    def __init__(
        self,
        per_case: bool = False,
        background: bool = False,
        smooth: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_weights)
        check_smooth("DiceLoss", smooth)
        self.per_case, self.background, self.smooth = per_case, background, smooth

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """1 - Dice."""
        terms = dice_terms(regions(logits, target, self.background), self.smooth, self.per_case)
        return class_mean(terms, self.class_weights)


def dice_terms(found: Regions, smooth: float, per_case: bool = False) -> Tensor:
    """1 - Dice of each class, (K',), or of each case and class, (B, K')."""
    overlap = position_sums(found.p * found.g, per_case)
    size = position_sums(found.p, per_case) + position_sums(found.g, per_case)
    return 1 - (2 * overlap + smooth) / (size + smooth)


def check_smooth(loss: str, smooth: float) -> None:
    """Raise ValueError unless `smooth` is at least 0."""
    if not smooth >= 0:
        raise ValueError(f"{loss} has smooth={smooth}; allowed are values >= 0, for example 1.0.")
