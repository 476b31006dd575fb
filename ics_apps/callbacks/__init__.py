"""Callbacks for any Lightning project: a probe, a schedule and where the numbers go."""

from __future__ import annotations

from ics_apps.callbacks.activation_monitor import ActivationMonitor
from ics_apps.callbacks.auto_precision import AutoPrecision
from ics_apps.callbacks.conditioning_monitor import ConditioningMonitor
from ics_apps.callbacks.freeze_layers import FreezeLayers
from ics_apps.callbacks.gradient_flow_monitor import GradientFlowMonitor
from ics_apps.callbacks.hessian_monitor import HessianMonitor
from ics_apps.callbacks.ics_monitor import ICSMonitor
from ics_apps.callbacks.input_drift_monitor import InputDriftMonitor
from ics_apps.callbacks.landscape_monitor import LandscapeMonitor
from ics_apps.callbacks.leakage_check import LeakageCheck
from ics_apps.callbacks.recompute_statistics import RecomputeStatistics
from ics_apps.callbacks.scale_invariance_monitor import ScaleInvarianceMonitor

__all__ = [
    "ActivationMonitor",
    "AutoPrecision",
    "ConditioningMonitor",
    "FreezeLayers",
    "GradientFlowMonitor",
    "HessianMonitor",
    "ICSMonitor",
    "InputDriftMonitor",
    "LandscapeMonitor",
    "LeakageCheck",
    "RecomputeStatistics",
    "ScaleInvarianceMonitor",
]
