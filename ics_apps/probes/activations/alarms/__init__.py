"""Online alarms: rules that judge the monitor's tables while a run trains."""

from __future__ import annotations

from ics_apps.probes.activations.alarms.alarm import Alarm, Rule, Verdict
from ics_apps.probes.activations.alarms.choice import make_rules
from ics_apps.probes.activations.alarms.watch import Watch

__all__ = [
    "Alarm",
    "Rule",
    "Verdict",
    "Watch",
    "make_rules",
]
