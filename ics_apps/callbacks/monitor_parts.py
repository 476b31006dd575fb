"""The monitor's Parquet files: one folder of parts that are always whole, readable with `pandas.read_parquet(folder)`.

What the columns mean is in `probes.recorder`; when rows are added and written is up to `activation_monitor`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from ics_apps.probes.recorder import COLUMNS, Table
from ics_apps.runs.atomic import sweep_parts, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLES_PER_PART: Final = 32


class MonitorParts:
    """Writes samples into `part-<first step>.parquet` files, each replaced as a whole.

    A part takes 32 samples and is rewritten as it grows, so that a run of many short epochs does not leave a file an
    epoch. A part is written to a hidden name in the same folder and moved into place: a killed run leaves the old part
    or the new one, never half of one.

    Args:
        folder: where the parts lie; made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._samples: list[Table] = []  # those of the open part
        self._first_step = 0
        self._unwritten = False

    def add(self, step: int, epoch: int, table: Table) -> None:
        """Take one sample in; a full part is written and closed.

        Args:
            step: optimizer steps done when it was read.
            epoch: the current epoch.
            table: what `Recorder.close` returned.
        """
        rows = len(table["call"])
        if rows == 0:
            return
        if not self._samples:
            self._first_step = step
        self._samples.append({"step": np.full(rows, step, np.int64), "epoch": np.full(rows, epoch, np.int32), **table})
        self._unwritten = True
        if len(self._samples) >= SAMPLES_PER_PART:
            self.flush()
            self._samples = []

    def flush(self) -> None:
        """Write what has not been written yet."""
        if not self._unwritten:
            return
        import pyarrow as pa

        names = ["step", "epoch", *COLUMNS]
        columns = {name: np.concatenate([sample[name] for sample in self._samples]) for name in names}
        _replace(self.folder / f"part-{self._first_step:09d}.parquet", pa.table(columns))
        self._unwritten = False

    def drop_from(self, step: int) -> int:
        """Remove rows of an earlier run of the same folder that will be written again.

        Args:
            step: rows with this step or a later one are removed; earlier ones stay.

        Returns:
            The number of rows removed.
        """
        self._samples, self._unwritten = [], False
        if not self.folder.is_dir():
            return 0
        sweep_parts(self.folder)
        return sum(_cut(part, step) for part in sorted(self.folder.glob("part-*.parquet")))


def _cut(part: Path, step: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A file object, not a path: for a path pyarrow also looks for partitions in the folders' names.
        with part.open("rb") as file:
            table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        aside = part.with_name(f"_unreadable-{part.name}")
        part.replace(aside)
        warnings.warn(f"{part} cannot be read ({error}); it is set aside as {aside.name}.", stacklevel=2)
        return 0
    keep: Any = np.asarray(table.column("step")) < step
    if keep.all():
        return 0
    if keep.any():
        _replace(part, table.filter(pa.array(keep)))
    else:
        part.unlink()
    return int((~keep).sum())


def _replace(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    def write(file: IO[bytes]) -> None:
        pq.write_table(table, file)

    write_atomically(path, write)
