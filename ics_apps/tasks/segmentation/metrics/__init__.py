"""Scores of whole cases: overlap, surface distances, calibration. Losses are in `losses`.

Conventions, because they change the figures: a score is computed per case and class; where truth and prediction are
both empty it is not counted; where one of them is, a false positive or a miss, Dice, IoU and NSD are 0 and distances
are the image's diagonal. Means run over cases first, then over the foreground classes. `CaseScores` can follow MONAI's
rule instead.
"""

from __future__ import annotations

from ics_apps.tasks.segmentation.metrics.case_scores import CaseScores
from ics_apps.tasks.segmentation.metrics.overlap import OverlapScores, case_counts, label_counts, overlap
from ics_apps.tasks.segmentation.metrics.surface import HausdorffDistance95, hausdorff95

__all__ = [
    "CaseScores",
    "HausdorffDistance95",
    "OverlapScores",
    "case_counts",
    "hausdorff95",
    "label_counts",
    "overlap",
]
