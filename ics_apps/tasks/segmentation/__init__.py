"""Segmentation: label every position of an image or volume. The card with question and numbers is README.md."""

from __future__ import annotations

from ics_apps.tasks.segmentation.losses import DiceCELoss
from ics_apps.tasks.segmentation.metrics import HausdorffDistance95, OverlapScores
from ics_apps.tasks.segmentation.module import SegmentationTask
from ics_apps.tasks.segmentation.writer import MaskWriter, PanelWriter

__all__ = ["DiceCELoss", "HausdorffDistance95", "MaskWriter", "OverlapScores", "PanelWriter", "SegmentationTask"]
