"""The monitor's Parquet files: one folder of parts that are always whole, readable with `pandas.read_parquet(folder)`.

What the columns mean is in `probes.columns`; when samples are added and written is up to `activation_monitor`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.columns import BINS, COLUMNS, HISTOGRAM, Table
from ics_apps.runs.atomic import sweep_parts, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa


class Limit(NamedTuple):
    """How much is held in one place: whichever of the two is reached first."""

    samples: int
    rows: int

    def reached(self, samples: int, rows: int) -> bool:
        """Whether one of the two is full."""
        return samples >= self.samples or rows >= self.rows


WAITING: Final = Limit(8, 512)  # in memory
PART: Final = Limit(32, 4096)  # in one file
FOLDER: Final = Limit(1024, 200_000)  # a row is at most 0.5 kB, whatever is in it: less than 100 MB
_SLOT: Final = b"ics_apps.slot"


class MonitorParts:
    """Writes samples into `part-<first step>.parquet` files, each replaced as a whole.

    **Memory.** At most 8 samples (or 512 rows) wait in memory; then they are appended to the open part, which is read,
    extended and moved into place under its old name: a killed run leaves the old part or the new one, never half of
    one. A part is full from 32 samples (or 4,096 rows) on; a resumed run goes on with the part that is open.

    **Size.** A folder keeps between about 512 and 1,024 samples, evenly over the run, however long the run is. When
    1,024 samples (or 200,000 rows) are on disk, the run's steps are cut into slots twice as long as the usual gap
    between two samples, and only the first sample of each slot stays and is written from then on: every second one.
    When the folder is full again the slots are doubled, and so on. Which samples stay thus follows from their step and
    the length of a slot, which every file carries in its metadata: it does not matter where a run was resumed, nor with
    which `every_n_steps`. Runs of up to 1,023 samples (30,690 steps at every 30th) keep every sample. The drift columns
    of a row stay what they were: against the sample before it, whether or not that one is still there.

    Thinning reads and writes one part at a time and joins small ones. If it is killed half-way, `drop_from` of the next
    run removes a part that has been joined to another already and thins the rest; nothing is lost and no row is double.

    Args:
        folder: where the parts lie; made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._slot = 1  # steps of which the first sample is kept; 1 keeps all
        self._last = -1  # step of the last sample taken in
        self._waiting: list[Table] = []
        self._parts: list[_Part] = []  # in order of their steps

    def add(self, step: int, epoch: int, table: Table) -> None:
        """Take one sample in, unless its slot of steps has one.

        Args:
            step: optimizer steps done when it was read; more than that of the sample before.
            epoch: the current epoch.
            table: what `Recorder.close` returned, R rows.
        """
        rows = len(table["call"])
        if rows == 0 or step // self._slot == self._last // self._slot:
            return
        self._last = step
        self._waiting.append({"step": np.full(rows, step, np.int64), "epoch": np.full(rows, epoch, np.int32), **table})
        if WAITING.reached(len(self._waiting), sum(len(sample["step"]) for sample in self._waiting)):
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        if not self._waiting:
            return
        import pyarrow as pa

        # Someone may have tidied the folder up meanwhile; that is no reason to end the training.
        self._parts = [part for part in self._parts if part.path.is_file()]
        table = _to_arrow(self._waiting)
        path = self.folder / f"part-{self._waiting[0]['step'][0]:09d}.parquet"
        if self._parts and not PART.reached(*self._parts[-1].size):
            path = self._parts.pop().path
            table = pa.concat_tables([_read(path), table])
        self._parts.append(_replace(path, table, self._slot))
        self._waiting = []
        if FOLDER.reached(*_size(self._parts)):
            self._thin(self._wider_slot())

    def drop_from(self, step: int) -> int:
        """Open the folder of an earlier run, without the rows that will be written again.

        Args:
            step: rows with this step or a later one are removed; earlier ones stay.

        Returns:
            The number of rows removed.
        """
        self._waiting, self._parts, self._slot, self._last = [], [], 1, -1
        if not self.folder.is_dir():
            return 0
        sweep_parts(self.folder)
        found = _without_joined([part for path in sorted(self.folder.glob("part-*.parquet")) if (part := _open(path))])
        self._parts = [kept for part in found if (kept := _cut(part, step))]
        if self._parts:
            self._slot = max(part.slot for part in self._parts)
            self._last = int(self._parts[-1].steps[-1])
        if any(part.slot < self._slot for part in self._parts):
            self._thin(self._slot)
        return sum(part.size[1] for part in found) - sum(part.size[1] for part in self._parts)

    def _wider_slot(self) -> int:
        """The slot that halves a full folder; the present one if a thinning to it was not finished."""
        steps, rows = _samples(self._parts)
        slot = self._slot if self._slot > 1 else max(1, int(np.median(np.diff(steps, prepend=0))))
        while slot <= steps[-1]:
            kept = _first_of_slots(steps, slot)
            # A little more than a half, as the samples of a slot may not be in step with it.
            if not Limit(FOLDER.samples * 5 // 8, FOLDER.rows * 5 // 8).reached(int(kept.sum()), int(rows[kept].sum())):
                break
            slot *= 2
        return slot

    def _thin(self, slot: int) -> None:
        self._slot = slot
        # While this goes on the parts on disk are not in order; if it is cut short, later samples open a new part.
        parts, self._parts = self._parts, []
        steps, _ = _samples(parts)
        kept = steps[_first_of_slots(steps, slot)]
        done: list[_Part] = []
        for part in parts:
            _thin_part(part, kept, slot, done)
        self._parts = done


@dataclass(frozen=True, slots=True)
class _Part:
    """A part on disk: its samples, and the slot it was thinned to."""

    path: Path
    slot: int
    steps: NDArray[np.int64]
    rows: NDArray[np.int64]  # of each sample

    @property
    def size(self) -> tuple[int, int]:
        """Samples and rows."""
        return len(self.steps), int(self.rows.sum())


def _samples(parts: list[_Part]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.concatenate([part.steps for part in parts]), np.concatenate([part.rows for part in parts])


def _size(parts: list[_Part]) -> tuple[int, int]:
    return sum(part.size[0] for part in parts), sum(part.size[1] for part in parts)


def _first_of_slots(steps: NDArray[np.int64], slot: int) -> NDArray[np.bool_]:
    return np.diff(steps // slot, prepend=-1) > 0


def _thin_part(part: _Part, kept: NDArray[np.int64], slot: int, done: list[_Part]) -> None:
    """Leave the `kept` steps of a part, and join it to the last one done if both fit into one."""
    import pyarrow as pa

    table = _read(part.path)
    table = table.filter(pa.array(np.isin(table.column("step"), kept)))
    inside = np.isin(part.steps, kept)
    samples, rows = int(inside.sum()), int(part.rows[inside].sum())
    if not samples:
        part.path.unlink()
    elif done and done[-1].size[0] + samples <= PART.samples and done[-1].size[1] + rows <= PART.rows:
        joined = done.pop().path
        done.append(_replace(joined, pa.concat_tables([_read(joined), table]), slot))
        part.path.unlink()
    else:
        done.append(_replace(part.path, table, slot))


def _without_joined(parts: list[_Part]) -> list[_Part]:
    """Remove parts whose rows a thinning had joined to the part before when it was killed."""
    left: list[_Part] = []
    for part in parts:
        if left and part.steps[0] <= left[-1].steps[-1]:
            part.path.unlink()
        else:
            left.append(part)
    return left


def _open(path: Path) -> _Part | None:
    import pyarrow as pa

    try:
        table = _read(path)
    except (pa.ArrowException, OSError) as error:
        aside = path.with_name(f"_unreadable-{path.name}")
        path.replace(aside)
        warnings.warn(f"{path} cannot be read ({error}); it is set aside as {aside.name}.", stacklevel=3)
        return None
    slot = int((table.schema.metadata or {}).get(_SLOT, 1))
    # pandas takes the columns of the first file for those of all: one of an older version would hide the new ones.
    return _index(path, table, slot) if table.schema.equals(_schema()) else _replace(path, _renewed(table), slot)


def _cut(part: _Part, step: int) -> _Part | None:
    import pyarrow as pa

    if part.steps[-1] < step:
        return part
    if part.steps[0] >= step:
        part.path.unlink()
        return None
    table = _read(part.path)
    return _replace(part.path, table.filter(pa.array(np.asarray(table.column("step")) < step)), part.slot)


def _index(path: Path, table: pa.Table, slot: int) -> _Part:
    steps, rows = np.unique(np.asarray(table.column("step")), return_counts=True)
    return _Part(path, slot, steps, rows)


def _schema() -> pa.Schema:
    import pyarrow as pa

    types: dict[str, Any] = {"object": pa.string(), "float32": pa.float32()}
    columns = {"step": "int64", "epoch": "int32", **COLUMNS}
    fields = [(name, types.get(dtype) or pa.type_for_alias(dtype)) for name, dtype in columns.items()]
    return pa.schema([(n, pa.list_(pa.uint16(), BINS + 2) if n == HISTOGRAM else kind) for n, kind in fields])


def _to_arrow(samples: list[Table]) -> pa.Table:
    import pyarrow as pa

    schema = _schema()
    columns: dict[str, Any] = {name: np.concatenate([sample[name] for sample in samples]) for name in schema.names}
    columns[HISTOGRAM] = pa.FixedSizeListArray.from_arrays(pa.array(columns[HISTOGRAM].reshape(-1)), BINS + 2)
    return pa.table(columns, schema=schema)


def _renewed(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    schema, rows = _schema(), table.num_rows
    missing = {f.name: pa.array([""] * rows) if f.type == pa.string() else pa.nulls(rows, f.type) for f in schema}
    have = dict(zip(table.column_names, table.columns, strict=True))
    return pa.table({name: have.get(name, missing[name]) for name in schema.names}).cast(schema)


def _read(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    # `read_table` would look for partitions in the folders' names, and import all of pyarrow's datasets.
    with path.open("rb") as file:
        return pq.ParquetFile(file).read()


def _replace(path: Path, table: pa.Table, slot: int) -> _Part:
    import pyarrow as pa
    import pyarrow.parquet as pq

    compression = "zstd" if pa.Codec.is_available("zstd") else "snappy"
    # Figures hardly ever repeat: a dictionary of them is larger than they are.
    repeated = [name for name in table.column_names if COLUMNS.get(name) not in ("float32", "uint16")]

    def write(file: IO[bytes]) -> None:
        pq.write_table(
            table.replace_schema_metadata({_SLOT: str(slot)}), file, compression=compression, use_dictionary=repeated
        )

    write_atomically(path, write)
    return _index(path, table, slot)
