"""`metrics.csv` of a run: a Lightning logger that appends, and that can be taken back to the step of a checkpoint.

Lightning's own `CSVLogger` empties its file when a run is resumed in the same folder. This one never loses a row:
each row reaches the file as it is logged, a new column rewrites the file atomically, and on a resume just the rows
that the resumed run will log again are dropped.
"""

from __future__ import annotations

import csv
import io
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ics_apps.runs.atomic import write_text_atomically
from ics_apps.runs.layout import METRICS_TABLE

INDEX_COLUMNS: Final = ("step", "epoch")


class MetricsLogger(Logger):
    """Write every logged scalar to `<run>/metrics.csv`, one row a call, columns named as logged (`val/dice`).

    Args:
        run_dir: The run directory. Nothing is created before the first row.

    Example:
        >>> import tempfile
        >>> logger = MetricsLogger(Path(tempfile.mkdtemp()))
        >>> logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
        >>> logger.log_metrics({"val/dice": 0.75, "epoch": 0}, step=9)
        >>> print(logger.path.read_text().strip())
        step,epoch,train/loss,val/dice
        0,0,0.5,
        9,0,,0.75
    """

    # One column a layer would make the table unreadable: the monitor's own files hold those.
    accepts_monitor_scalars = False

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / METRICS_TABLE
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the run directory itself is the place, without a sub-folder by name."""
        return ""

    @property
    def version(self) -> str:
        """Empty, for the same reason as `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run directory, so that Lightning's callbacks write there too."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: `config.yaml` of the run holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; a metric seen for the first time becomes a new column at the right."""
        row = {"step": "" if step is None else str(step), **{key: _cell(value) for key, value in metrics.items()}}
        columns = self._known_columns()
        new = [key for key in row if key not in columns]
        if new or not self.path.is_file():
            columns.extend(new)
            self._rewrite([*read_rows(self.path), row])
        else:
            with self.path.open("a", newline="") as file:
                _writer(file, columns).writerow(row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows at `step` and later, and half a row that a killed process left: they will be logged again."""
        if not self.path.is_file():
            return
        kept = [row for row in read_rows(self.path) if row["step"] and int(row["step"]) < step]
        self._columns = None
        self._known_columns()
        self._rewrite(kept)

    def _known_columns(self) -> list[str]:
        if self._columns is None:
            self._columns = list(INDEX_COLUMNS)
            if self.path.is_file():
                with self.path.open(newline="") as file:
                    header = next(csv.reader(file), [])
                self._columns += [name for name in header if name not in INDEX_COLUMNS]
        return self._columns

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = _writer(text, self._known_columns())
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a `metrics.csv`; a last line without its line end was cut off and is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole), restval=""))


def _writer(file: IO[str], columns: list[str]) -> csv.DictWriter[str]:
    return csv.DictWriter(file, columns, restval="", lineterminator="\n")


def _cell(value: Any) -> str:
    number = float(value)
    if math.isfinite(number) and number == int(number) and abs(number) < 1e15 and not isinstance(value, float):
        return str(int(number))
    return repr(number)
