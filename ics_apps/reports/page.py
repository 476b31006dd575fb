"""Writes the page of a run or of several: reads the directories, fills the template, replaces the file in one move.

What stands on a page is put together in `sections` and in `comparison`; this module stays light to import.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ics_apps.reports.run_files import ReportError, read_run
from ics_apps.runs import layout
from ics_apps.runs.atomic import write_atomically

if TYPE_CHECKING:
    from ics_apps.reports.parts import Page


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write one self-contained HTML page of a run; it opens offline and loads nothing.

    Args:
        run_dir: Run directory, in any state: parts that are missing are named on the page.
        out: File to write; `report.html` in the run directory where it is None. Folders on the way are made.

    Returns:
        Path of the page. It appears complete or not at all: an older page stays until then.

    Raises:
        ReportError: `run_dir` is no run directory, or `out` cannot be written.
    """
    run_dir = Path(run_dir)
    target = _target(run_dir / layout.REPORT if out is None else out, layout.REPORT)
    run = read_run(run_dir)

    from ics_apps.reports.sections import build_page

    _replace_file(target, _render(build_page(run)))
    return target


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page that sets several runs side by side; it opens offline and loads nothing.

    Args:
        run_dirs: Two or more run directories, in any state; their layers need not match.
        out: File to write; `comparison.html` in the current folder where it is None.

    Returns:
        Path of the page. It appears complete or not at all: an older page stays until then.

    Raises:
        ReportError: Fewer than two runs, one of them twice, one that is no run directory, or `out` cannot be written.
    """
    target = _target(Path(layout.COMPARISON) if out is None else out, layout.COMPARISON)
    if len(run_dirs) < 2:
        raise ReportError(f"a comparison takes two or more runs, and {len(run_dirs)} came; `write_report` takes one")
    runs = [read_run(Path(run_dir)) for run_dir in run_dirs]

    from ics_apps.reports.comparison import build_comparison

    _replace_file(target, _render(build_comparison(runs)))
    return target


def _target(out: Path, name: str) -> Path:
    target = Path(out)
    if target.is_dir():
        raise ReportError(f"{target} is a directory; give the file to write, such as {target / name}")
    return target


def _render(page: Page) -> str:
    from jinja2 import Environment, StrictUndefined

    source = resources.files("ics_apps.reports").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(page=page)


def _replace_file(target: Path, text: str) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(text.encode("utf-8", errors="replace"))

    try:
        write_atomically(target, write)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ReportError(f"{target} cannot be written ({reason}); give another file with `out`") from error
