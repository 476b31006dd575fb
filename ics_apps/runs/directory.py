"""Choose the directory of a run, and where in it training goes on. No torch is imported before a checkpoint is read.

A directory belongs to one run for ever: a fresh start never lands in one that already holds a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ics_apps.runs.layout import BEST_CHECKPOINT, CHECKPOINTS, CONFIG, METRICS_TABLE, RECORD

DEFAULT_ROOT: Final = Path("runs")
NAME_PATTERN: Final = re.compile(r"^[a-z0-9][a-z0-9_./-]{0,80}$")
_MARKS_OF_A_RUN: Final = (CONFIG, RECORD, METRICS_TABLE, CHECKPOINTS)


class RunDirectoryError(ValueError):
    """A run directory that cannot be used as asked."""


def holds_run(path: Path) -> bool:
    """Whether `path` holds anything a run has written."""
    return any((path / mark).exists() for mark in _MARKS_OF_A_RUN)


def fresh_run_dir(name: str, out: Path | None = None) -> Path:
    """The directory for a new run: `out`, or the next free number under `runs/<name>`.

    Raises:
        RunDirectoryError: `out` already holds a run, or `name` cannot be a path.
    """
    if out is not None:
        if holds_run(out):
            raise RunDirectoryError(
                f"{out} already holds a run: continue it with --ckpt_path last, or give another directory with --out."
            )
        return out
    numbers = _numbered(_checked_root(name))
    return _checked_root(name) / str(max(numbers, default=0) + 1)


def newest_run_dir(name: str, out: Path | None = None) -> Path | None:
    """The directory of the run to continue: `out`, or the newest number under `runs/<name>`; None without a run."""
    if out is not None:
        return out if holds_run(out) else None
    root = _checked_root(name)
    numbers = [number for number in _numbered(root) if holds_run(root / str(number))]
    return root / str(max(numbers)) if numbers else None


def best_checkpoint(run_dir: Path) -> Path:
    """The best checkpoint of a run.

    Raises:
        RunDirectoryError: The run has none yet.
    """
    path = run_dir / CHECKPOINTS / BEST_CHECKPOINT
    if not path.is_file():
        raise RunDirectoryError(f"{run_dir} has no {CHECKPOINTS}/{BEST_CHECKPOINT} yet: train first, or name a file.")
    return path


def _checked_root(name: str) -> Path:
    if not NAME_PATTERN.match(name) or ".." in name:
        raise RunDirectoryError(
            f"run name {name!r} cannot be a folder: use lower-case letters, digits, '_', '-', '.' and '/'."
        )
    return DEFAULT_ROOT / name


def _numbered(root: Path) -> list[int]:
    if not root.is_dir():
        return []
    return [int(child.name) for child in root.iterdir() if child.is_dir() and child.name.isdigit()]
