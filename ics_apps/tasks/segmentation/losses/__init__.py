r"""Losses of the segmentation task: one class a loss, chosen by `class_path` in a recipe.

Every loss maps logits (B, K, \*S) and a target to a scalar, in float32 under autocast too. How a target is read
(multi-class or multi-label, ignored positions) is said in `tasks.segmentation.targets`; scores are in `metrics`.
"""

from __future__ import annotations

from ics_apps.tasks.segmentation.losses.boundary import BoundaryLoss
from ics_apps.tasks.segmentation.losses.cldice import ClDiceLoss
from ics_apps.tasks.segmentation.losses.combined import CombinedLoss, DiceCELoss
from ics_apps.tasks.segmentation.losses.cross_entropy import CrossEntropyLoss, FocalLoss
from ics_apps.tasks.segmentation.losses.deep_supervision import DeepSupervisionLoss
from ics_apps.tasks.segmentation.losses.dice import DiceLoss
from ics_apps.tasks.segmentation.losses.tversky import TverskyLoss

__all__ = [
    "BoundaryLoss",
    "ClDiceLoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceLoss",
    "FocalLoss",
    "TverskyLoss",
]
