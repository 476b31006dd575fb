"""The monitor's alarms as a CSV file: `_alarms.csv`, always whole, readable with `pandas.read_csv`.

When an alarm fires, and what it says, is up to `ics_apps.probes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ics_apps.callbacks.step_table import StepTable
from ics_apps.runs.layout import ALARMS

FIELDS: Final = ("step", "epoch", "rule", "layer", "value", "threshold", "sentence", "remedy")
MAX_ALARMS: Final = 10_000
FULL: Final = "file_full"  # the rule of the last line of a file that takes no more


class AlarmFile:
    """One line an alarm; a file with a header only says that the run was watched and nothing fired.

    It takes 10,000 alarms; after them a last line with the rule `file_full` says that later ones are not written.

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
        self._table = StepTable(self.path, FIELDS)
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
        self._table.add(rows)
        self._alarms += min(len(alarms), room)

    def drop_from(self, step: int) -> int:
        """Open the file: without the alarms that a resumed run will raise again, and with a header if it is new.

        Args:
            step: alarms of this step or a later one are removed; earlier ones stay.

        Returns:
            The number of alarms removed.
        """
        found = len(self._table.read())
        kept = self._table.drop_from(step)
        self._full = any(row["rule"] == FULL for row in kept)
        self._alarms = len(kept) - self._full
        return found - len(kept)


_LAST: Final = {
    "rule": FULL,
    "sentence": f"{MAX_ALARMS:,} alarms are written; this one and later ones are not.",
    "remedy": "Heed the first ones: most of the later ones follow from them.",
}
