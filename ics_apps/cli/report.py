"""`ics-apps report RUN [RUN ...]`: write the HTML page of a run directory, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def report_verb(arguments: list[str]) -> int:
    """`ics-apps report RUN [RUN ...] [--out FILE]`: one self-contained HTML page of a run, or of several."""
    parser = argparse.ArgumentParser(prog="ics-apps report", description=report_verb.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory; several are compared")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the HTML file to write; default: report.html in the run directory, or comparison.html in the current "
        "folder for several runs",
    )
    options = parser.parse_args(arguments)
    from ics_apps.reports import write_comparison, write_report

    several = len(options.runs) > 1
    page = write_comparison(options.runs, options.out) if several else write_report(options.runs[0], options.out)
    print(page)  # noqa: T201
    return 0
