"""A CSV file of rows by step: extended while a run goes on, always whole, cut back when a run is resumed.

What the rows say is up to those who write them.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ics_apps.runs.atomic import write_atomically

Row = dict[str, str]


class StepTable:
    """One line a row, with a header; its first column is `step`.

    The file is copied, extended and moved into place: a killed run leaves the old file or the new one.

    Args:
        path: the file.
        fields: names of its columns.

    Example:
        >>> import tempfile
        >>> table = StepTable(Path(tempfile.mkdtemp()) / "ics.csv", ("step", "layer", "cosine"))
        >>> table.add([{"step": 0, "layer": "fc", "cosine": 0.5}, {"step": 100, "layer": "fc", "cosine": 0.25}])
        >>> [row["cosine"] for row in table.drop_from(100)]
        ['0.5']
        >>> table.path.read_text().splitlines()
        ['step,layer,cosine', '0,fc,0.5']
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self.path = path
        self.fields = tuple(fields)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows at the end; a missing column is left empty, others are not written."""
        if rows:
            old = self.path if self.path.is_file() else None
            write_atomically(self.path, lambda file: self._extend(old, rows, file))

    def read(self) -> list[Row]:
        """The rows of the file, without lines that are damaged; none if there is no file."""
        return [row for row in self._lines() if self._is_whole(row)]

    def drop_from(self, step: int) -> list[Row]:
        """Keep the rows before `step`, which a resumed run does not write again; write the header if the file is new.

        Returns:
            The rows that were kept.
        """
        kept = [row for row in self.read() if int(row["step"]) < step]
        write_atomically(self.path, lambda file: self._extend(None, kept, file))
        return kept

    def _lines(self) -> list[Row]:
        if not self.path.is_file():
            return []
        # Bytes that are no UTF-8 are part of a damaged line.
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [row for row in csv.DictReader(file) if set(row) == set(self.fields)]

    def _is_whole(self, row: Mapping[str, str | None]) -> bool:
        """Not one that a full disk or a power cut left half-written."""
        return None not in row.values() and (row["step"] or "").isdecimal()

    def _extend(self, old: Path | None, rows: Sequence[Mapping[str, Any]], file: IO[bytes]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.fields, extrasaction="ignore", lineterminator="\n")
        if old is None:
            writer.writeheader()
        else:
            with old.open("rb") as before:
                shutil.copyfileobj(before, file)
        writer.writerows(rows)
        file.write(text.getvalue().encode())
