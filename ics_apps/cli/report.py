"""`ics-apps report RUN`: write the HTML page of a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path


def report_verb(arguments: list[str]) -> int:
    """`ics-apps report RUN [--out FILE]`: one self-contained HTML page of a run."""
    parser = argparse.ArgumentParser(prog="ics-apps report", description=report_verb.__doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, help="the HTML file to write; default: report.html in the run directory")
    options = parser.parse_args(arguments)
    from ics_apps.reports import write_report

    print(write_report(options.run, options.out))  # noqa: T201
    return 0
