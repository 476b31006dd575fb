"""Several runs on one page: what was set differently, who did best, and how their layers drifted beside each other."""

from __future__ import annotations

from ics_apps.reports.comparison.sections import build_comparison

__all__ = ["build_comparison"]
