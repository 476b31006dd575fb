"""What runs wrote becomes one self-contained HTML page; nothing here trains, and only files are read."""

from __future__ import annotations

from ics_apps.reports.page import write_comparison, write_report
from ics_apps.reports.run_files import ReportError

__all__ = ["ReportError", "write_comparison", "write_report"]
