"""Callbacks for any Lightning project: a probe, a schedule and where the numbers go."""

from __future__ import annotations

from ics_apps.callbacks.activation_monitor import ActivationMonitor
from ics_apps.callbacks.auto_precision import AutoPrecision
from ics_apps.callbacks.recompute_statistics import RecomputeStatistics

__all__ = ["ActivationMonitor", "AutoPrecision", "RecomputeStatistics"]
