"""Which classes are scored, and their masks and means: all but the background, or all labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ics_apps.tasks.segmentation.targets import IGNORE, indicators


class Foreground:
    r"""The classes that are scored.

    Args:
        class_names: Names by class index, the first is background; or the names of the labels.
        multi_label: Whether cases are labels (B, K, \*S) instead of class indices (B, \*S).

    Attributes:
        names: The names of the K' scored classes.
    """

    def __init__(self, class_names: Sequence[str], multi_label: bool = False) -> None:
        self.class_names, self.multi_label = list(class_names), multi_label
        self.names = self.class_names if multi_label else self.class_names[1:]

    def masks(self, classes: Tensor, target: Tensor) -> Tensor:
        r"""Masks (B, K', \*S) of class indices or labels; what the target ignores is in no mask.

        Example:
            >>> import torch
            >>> found = torch.tensor([[0, 1, 1]])
            >>> Foreground(["background", "cell"]).masks(found, torch.tensor([[0, 1, IGNORE]])).int().tolist()
            [[[0, 1, 0]]]
        """
        if self.multi_label:
            return (classes > 0) & (target != IGNORE)
        return indicators(classes, len(self.class_names), first=1) & (target != IGNORE).unsqueeze(1)

    def means(self, name: str, scores: Tensor) -> dict[str, Tensor]:
        """`name` and `name/<class>` of scores (cases, K'): NaN skipped, over cases first, then over classes."""
        per_class = scores.nanmean(dim=0)
        named = {f"{name}/{label}": score for label, score in zip(self.names, per_class, strict=True)}
        return {name: per_class.nanmean(), **named}
