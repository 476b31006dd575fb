r"""What a target says, for losses and metrics alike: multi-class or multi-label, and which positions are ignored.

A target of class indices (B, \*S) is *multi-class*: one class a position, softmax, class 0 is background. A target of
the logits' shape (B, K, \*S) is *multi-label*: K labels that may overlap, each yes (1) or no (0), sigmoid, none of
them background. In both, `IGNORE` marks what nobody has labelled: it counts in no loss and no score.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

IGNORE: Final = -1
"""The target of a position that nobody has labelled; below 0, so that no class can have this index."""


def is_multi_label(logits: Tensor, target: Tensor) -> bool:
    r"""Whether a target is multi-label, told by its shape alone.

    Args:
        logits: (B, K, \*S).
        target: (B, \*S) with class indices, or (B, K, \*S) with 0, 1 and `IGNORE`.

    Raises:
        ValueError: The shapes do not belong together, or softmax has one channel only.

    Example:
        >>> logits = torch.zeros(2, 3, 8, 8)
        >>> is_multi_label(logits, torch.zeros(2, 8, 8)), is_multi_label(logits, torch.zeros(2, 3, 8, 8))
        (False, True)
    """
    if logits.shape == target.shape:
        return True
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"a target of shape {tuple(target.shape)} came with logits of shape {tuple(logits.shape)}; give class "
            "indices (B, *S), or one channel a label (B, K, *S)."
        )
    if logits.shape[1] == 1:
        raise ValueError(
            "class indices came with logits of one channel, which softmax makes 1 everywhere; give a target "
            "(B, 1, *S) for one label, or a net with two classes."
        )
    return False


def indicators(target: Tensor, num_classes: int, first: int = 0) -> Tensor:
    r"""One channel a class: whether a position of class indices (B, \*S) has it; (B, num_classes - first, \*S), bool.

    `IGNORE` has none.

    Example:
        >>> indicators(torch.tensor([[0, 1, IGNORE]]), 2).int().tolist()
        [[[1, 0, 0], [0, 1, 0]]]
    """
    classes = torch.arange(first, num_classes, device=target.device)
    return target.unsqueeze(1) == classes.reshape(-1, *[1] * (target.ndim - 1))
