"""Reads metrics.csv, even while it is written or after its writer was killed, into one series a metric."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_STEP: Final = 2.0**53  # above it a float64 no longer holds each integer


@dataclass(frozen=True)
class Series:
    """One logged quantity over the steps of a run.

    Attributes:
        name: As logged, `stage/metric`.
        steps: int64 (T,), increasing.
        values: float64 (T,); NaN where NaN was logged.
    """

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def read_text(path: Path, problems: list[str]) -> str | None:
    """Read a text file; None where it is missing or cannot be read, and the latter is named in `problems`."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name} could not be read ({error.strerror}).")
        return None


def read_curves(path: Path, problems: list[str]) -> tuple[dict[str, Series], int | None, int | None]:
    """Read metrics.csv; a step that was logged twice (a resumed run) keeps its later value.

    Args:
        path: The file; it may be missing.
        problems: Sentences about what could not be read are appended here.

    Returns:
        Series by name in the order of the columns, the last step, and the last epoch (None where there is none).
    """
    header, rows = read_rows(path, problems)
    points: dict[str, dict[int, float]] = {name: {} for name in header if name not in ("step", "epoch", "")}
    steps: list[int] = []
    epochs: list[int] = []
    unreadable = 0
    for row in rows:
        cells = dict(zip(header, row, strict=False))
        step = to_integer(cells.get("step", "")) if len(row) == len(header) else None
        if step is None:
            unreadable += 1
            continue
        steps.append(step)
        epoch = to_integer(cells.pop("epoch", ""))
        # The test after training is logged under the number of an epoch that never began.
        tested = all(name.startswith("test/") for name, cell in cells.items() if cell and name != "step")
        epochs += [] if epoch is None or tested else [epoch]
        for name in points.keys() & cells.keys():
            value = to_float(cells[name])
            if value is not None:
                points[name][step] = value
            unreadable += value is None and cells[name].strip() != ""
    if unreadable:
        problems.append(f"{unreadable} lines or cells of {path.name} could not be read and are left out.")
    curves = {name: _series(name, logged) for name, logged in points.items() if logged}
    return curves, max(steps, default=None), max(epochs, default=None)


def read_rows(path: Path, problems: list[str]) -> tuple[list[str], list[list[str]]]:
    """Read the header and the rows of a CSV file that has a column `step`; a line that was cut off is left out."""
    text = read_text(path, problems)
    if not text:
        return [], []
    if not text.endswith("\n"):
        problems.append(f"The last line of {path.name} was cut off and is left out.")
        text = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(text.replace("\0", "").splitlines()))
    if not rows or "step" not in rows[0]:
        problems.append(f"{path.name} has no column `step`; it is left out.")
        return [], []
    return rows[0], rows[1:]


def to_float(cell: str) -> float | None:
    """Read a number; None for any other text."""
    try:
        return float(cell)
    except ValueError:
        return None


def to_integer(cell: str) -> int | None:
    """Read a whole number, also one written as a float; None for any other text."""
    number = to_float(cell)
    return int(number) if number is not None and abs(number) < _MAX_STEP else None


def _series(name: str, logged: dict[int, float]) -> Series:
    import numpy as np

    steps = sorted(logged)
    return Series(name, np.array(steps, dtype=np.int64), np.array([logged[step] for step in steps], dtype=np.float64))
