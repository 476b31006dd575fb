"""The monitor's alarms as a CSV file: `_alarms.csv`, always whole, readable with `pandas.read_csv`.

When an alarm fires, and what it says, is up to `ics_apps.probes`.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from ics_apps.runs.atomic import write_atomically
from ics_apps.runs.layout import ALARMS

FIELDS: Final = ("step", "epoch", "rule", "layer", "value", "threshold", "sentence", "remedy")
MAX_ALARMS: Final = 10_000
FULL: Final = "file_full"  # the rule of the last line of a file that takes no more


class AlarmFile:
    """One line an alarm; a file with a header only says that the run was watched and nothing fired.

    The file is copied, extended and moved into place: a killed run leaves the old file or the new one. It takes 10,000
    alarms; after them a last line with the rule `file_full` says that later ones are not written.

    Args:
        folder: where `_alarms.csv` lies.

    Example:
        >>> import tempfile
        >>> file = AlarmFile(Path(tempfile.mkdtemp()))
        >>> file.drop_from(0)
        0
        >>> file.add([{"step": 20, "epoch": 0, "rule": "nonfinite", "layer": "head", "value": 3, "threshold": 0}])
        >>> file.path.read_text().splitlines()
        ['step,epoch,rule,layer,value,threshold,sentence,remedy', '20,0,nonfinite,head,3,0,,']
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ALARMS
        self._alarms = 0
        self._full = False

    def add(self, alarms: Sequence[Mapping[str, Any]]) -> None:
        """Write alarms at the end.

        Args:
            alarms: each with `step`, `epoch`, `rule`, `layer`, `value`, `threshold`, `sentence`, `remedy`; a missing
                one is left empty, others are not written.
        """
        if not alarms or self._full:
            return
        room = MAX_ALARMS - self._alarms
        rows: list[Mapping[str, Any]] = list(alarms[:room])
        self._full = len(alarms) > room
        if self._full:
            rows.append({"step": alarms[room]["step"], "epoch": alarms[room]["epoch"], **_LAST})
        old = self.path if self.path.is_file() else None
        write_atomically(self.path, lambda file: _extend(old, rows, file))
        self._alarms += min(len(alarms), room)

    def drop_from(self, step: int) -> int:
        """Open the file: without the alarms that a resumed run will raise again, and with a header if it is new.

        Args:
            step: alarms of this step or a later one are removed; earlier ones stay.

        Returns:
            The number of alarms removed.
        """
        found = _read(self.path) if self.path.is_file() else []
        kept = [row for row in found if _is_whole(row) and int(row["step"]) < step]
        self._full = any(row["rule"] == FULL for row in kept)
        self._alarms = len(kept) - self._full
        write_atomically(self.path, lambda file: _extend(None, kept, file))
        return len(found) - len(kept)


_LAST: Final = {
    "rule": FULL,
    "sentence": f"{MAX_ALARMS:,} alarms are written; this one and later ones are not.",
    "remedy": "Heed the first ones: most of the later ones follow from them.",
}


def _read(path: Path) -> list[dict[str, str]]:
    # Bytes that are no UTF-8 are part of a damaged line.
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [row for row in csv.DictReader(file) if set(row) == set(FIELDS)]


def _is_whole(row: Mapping[str, str | None]) -> bool:
    """Not one that a full disk or a power cut left half-written."""
    return None not in row.values() and (row["step"] or "").isdecimal()


def _extend(old: Path | None, rows: Sequence[Mapping[str, Any]], file: IO[bytes]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    if old is None:
        writer.writeheader()
    else:
        with old.open("rb") as before:
            shutil.copyfileobj(before, file)
    writer.writerows(rows)
    file.write(text.getvalue().encode())
