"""File names of a run directory: the contract between who writes a run and who reads it.

Only names live here, and nothing heavy is imported, so that reports and the command line can read them at once.
"""

from __future__ import annotations

from typing import Final

CONFIG: Final = "config.yaml"
RECORD: Final = "run.json"
METRICS_TABLE: Final = "metrics.csv"
METRICS_SUMMARY: Final = "metrics.json"
CHECKPOINTS: Final = "checkpoints"
LAST_CHECKPOINT: Final = "last.ckpt"
PREVIOUS_CHECKPOINT: Final = "previous.ckpt"
BEST_CHECKPOINT: Final = "best.ckpt"
MONITOR: Final = "monitor"
ALARMS: Final = "_alarms.csv"  # in MONITOR; the underscore hides it from readers of Parquet folders
PROBES: Final = "probes"  # one CSV a table; which columns, in `ics_apps.callbacks`
PANELS: Final = "panels"
PANELS_INDEX: Final = "index.json"
CASES: Final = "cases.csv"
CASES_SUMMARY: Final = "cases_summary.csv"
PREDICTIONS: Final = "predictions"
REPORT: Final = "report.html"
COMPARISON: Final = "comparison.html"
PRECISION: Final = "precision.json"
