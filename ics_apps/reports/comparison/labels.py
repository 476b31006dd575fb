"""How runs are called where several stand on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ics_apps.reports.run_files import ReportError
from ics_apps.reports.wording import shorten

LABEL_WIDTH: Final = 30


def run_labels(run_dirs: Sequence[Path]) -> tuple[str, ...]:
    """Name each run by as many of its last folders as tell it apart; a mere number takes the folder above with it.

    Args:
        run_dirs: Run directories.

    Returns:
        One label a run, all different, each of at most about 30 characters.

    Raises:
        ReportError: A directory is given twice.

    Example:
        >>> run_labels([Path("/a/batch/0"), Path("/a/group/0"), Path("/a/plain")])
        ('batch/0', 'group/0', 'plain')
    """
    resolved = [Path(path).resolve() for path in run_dirs]
    twice = next((path for path, times in Counter(resolved).items() if times > 1), None)
    if twice is not None:
        raise ReportError(f"{twice} is given twice, but a comparison is of different runs; give each run once")
    labels = [_shortest(path, resolved) for path in resolved]
    short = [shorten(label, LABEL_WIDTH) for label in labels]
    times = Counter(short)
    return tuple(f"{i}: {label}" if times[label] > 1 else label for i, label in enumerate(short, start=1))


def _shortest(path: Path, others: Sequence[Path]) -> str:
    names = path.parts[1:]
    for length in range(1, len(names) + 1):
        alike = sum(other.parts[1:][-length:] == names[-length:] for other in others)
        if alike == 1 and not names[-length].isdigit():
            return "/".join(names[-length:])
    return "/".join(names)
