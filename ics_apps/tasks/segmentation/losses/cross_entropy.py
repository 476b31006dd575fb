"""Losses of single positions: cross-entropy and the focal loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses.regions import known_mean
from ics_apps.tasks.segmentation.losses.weighted import ClassWeighted
from ics_apps.tasks.segmentation.targets import IGNORE, is_multi_label


class CrossEntropyLoss(ClassWeighted):
    r"""Cross-entropy: softmax for classes, binary for labels; the mean over all positions that are not ignored.

    .. math:: \frac{\sum_i w_i \, (-\log q_i)}{\sum_i w_i}

    with q the probability of what is true at position i: softmax of the true class, or for every label p where it is 1
    and 1 - p where it is 0 (for soft truth g the two terms by g and 1 - g).

    Args:
        class_weights: w, one a channel of the logits: the weight of the true class, or of the label; None: all 1.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S); the loss is a scalar >= 0 in nats, float32; 0 where all is
        ignored.

    Example:
        >>> loss = CrossEntropyLoss()
        >>> round(float(loss(torch.zeros(1, 4, 3), torch.tensor([[0, 2, IGNORE]]))), 6)  # ln(4)
        1.386294

    Reference: `torch.nn.CrossEntropyLoss` with its weights and `ignore_index`.
    """

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted mean over known positions."""
        if is_multi_label(logits, target):
            return self._of_labels(logits, target)
        log_q = -F.nll_loss(F.log_softmax(logits, dim=1), target, reduction="none", ignore_index=IGNORE)
        weights = (target != IGNORE).to(logits.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(logits.dtype)[target.clamp(min=0)]
        return known_mean(self._cost(log_q), weights)

    def _of_labels(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = (target != IGNORE).to(logits.dtype)
        g = target.to(logits.dtype) * weights
        if self.class_weights is not None:
            weights = weights * self.class_weights.reshape(-1, *[1] * (logits.ndim - 2)).to(logits.dtype)
        yes, no = self._cost(F.logsigmoid(logits)), self._cost(F.logsigmoid(-logits))
        return known_mean(g * yes + (1 - g) * no, weights)

    def _cost(self, log_q: Tensor) -> Tensor:
        return -log_q


class FocalLoss(CrossEntropyLoss):
    r"""Cross-entropy in which positions that are right already count less.

    .. math:: \frac{\sum_i w_i \, (1 - q_i)^\gamma \, (-\log q_i)}{\sum_i w_i}

    with the letters of `CrossEntropyLoss`, which is gamma = 0.

    Args:
        gamma: The exponent, >= 0.
        class_weights: w, one a channel of the logits; the alpha of the paper but for the division by the sum of w.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S); the loss is a scalar >= 0 in nats, float32; 0 where all is
        ignored.

    Raises:
        ValueError: `gamma` is negative, or the weights are none.

    Example:
        >>> round(float(FocalLoss()(torch.zeros(1, 2, 4), torch.zeros(1, 4, dtype=torch.long))), 6)  # ln(2) / 4
        0.173287

    Reference: Lin 2017, equations 4 and 5. MONAI's mean with softmax is over classes too: this divided by K.
    """

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        if gamma < 0:
            raise ValueError(f"FocalLoss has gamma={gamma}; allowed are values >= 0, for example 2.0.")
        self.gamma = gamma

    def _cost(self, log_q: Tensor) -> Tensor:
        # expm1 keeps the digits of 1 - q near q = 1; a root (gamma < 1) has an infinite slope at exactly 0.
        miss = (-torch.expm1(log_q)).clamp(min=torch.finfo(log_q.dtype).tiny)
        return -(miss**self.gamma) * log_q
