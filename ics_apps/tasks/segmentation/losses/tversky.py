"""The Tversky loss: Dice in which false positives and false negatives weigh differently."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ics_apps.tasks.segmentation.losses.dice import check_smooth
from ics_apps.tasks.segmentation.losses.regions import class_mean, position_sums, regions
from ics_apps.tasks.segmentation.losses.weighted import ClassWeighted

_SMALLEST = 1e-7  # of 1 - TI before a power: a root has an infinite slope at 0


class TverskyLoss(ClassWeighted):
    r"""One minus the Tversky index, or a power of it.

    .. math:: \frac{1}{K'} \sum_k (1 - TI_k)^e, \quad
        TI = \frac{TP + s}{TP + \alpha FP + \beta FN + s}

    with TP = sum of p g, FP = sum of p (1 - g), FN = sum of (1 - p) g over space and batch, and the mean over the K'
    classes but the background. Ignored positions are in no sum. With alpha = beta = 0.5 it is Dice with smoothing 2 s.

    Args:
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0; above alpha, misses cost more.
        exponent: e, > 0; below 1 (0.75 in Abraham 2019) classes that are nearly right keep a large gradient.
        per_case: Sum over the space of each case and average over cases.
        background: Count class 0 too. Labels have no background.
        smooth: s, in positions, >= 0.
        class_weights: The classes' weights in the mean, one a channel of the logits; None: all alike.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S); the loss is a scalar in [0, 1], float32.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[20.0, -20.0]], [[-20.0, 20.0]]]).reshape(1, 2, 1, 2)
        >>> round(float(TverskyLoss()(logits, torch.tensor([[[1, 1]]]))), 4)  # one of two missed: 0.7 / (1 + 0.7 + 1)
        0.2593

    Reference: Salehi 2017, equation 3, alpha 0.3 and beta 0.7; the exponent is 1/gamma of Abraham 2019, equation 4.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        exponent: float = 1.0,
        per_case: bool = False,
        background: bool = False,
        smooth: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_weights)
        check_smooth("TverskyLoss", smooth)
        if min(alpha, beta) < 0 or exponent <= 0:
            raise ValueError(
                f"TverskyLoss has alpha={alpha}, beta={beta}, exponent={exponent}; allowed are alpha and beta >= 0 "
                "and exponent > 0."
            )
        self.alpha, self.beta, self.exponent = alpha, beta, exponent
        self.per_case, self.background, self.smooth = per_case, background, smooth

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """(1 - TI)^e."""
        found = regions(logits, target, self.background)
        hit = position_sums(found.p * found.g, self.per_case)
        wrong = position_sums(found.p, self.per_case) - hit
        missed = position_sums(found.g, self.per_case) - hit
        terms = 1 - (hit + self.smooth) / (hit + self.alpha * wrong + self.beta * missed + self.smooth)
        if self.exponent != 1:
            terms = terms.clamp(min=_SMALLEST) ** self.exponent
        return class_mean(terms, self.class_weights)
