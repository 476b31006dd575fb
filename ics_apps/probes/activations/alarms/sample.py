"""One table as the rules see it: float64 columns, its rows, and what is remembered of each row's key."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.alarms.memory import Memory
from ics_apps.probes.activations.alarms.rows import SHORTEST, Rows
from ics_apps.probes.activations.columns import Table, label

FloatArray = NDArray[np.float64]


class Sample:
    """Columns by name and the past of each row.

    Args:
        table: the monitor's table, R rows.
        rows: what the rows stand for.
        step: optimizer steps done.
        memory: what is remembered of earlier samples.
        slots: place of each row in `memory`, `(R,)`.
    """

    def __init__(self, table: Table, rows: Rows, step: int, memory: Memory, slots: NDArray[np.intp]) -> None:
        self.rows = rows
        self.step = step
        self._table = table
        self._memory = memory
        self._slots = slots
        self._columns: dict[str, FloatArray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> FloatArray:
        """A column of numbers as float64, `(R,)`."""
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = self._table[name].astype(np.float64)
        return found

    def remembered(self, name: str) -> NDArray[Any]:
        """What `Memory` holds under `name` for each row, before this sample is taken in."""
        return getattr(self._memory, name)[self._slots]  # type: ignore[no-any-return]

    def label(self, row: int) -> str:
        """How the layer of a row is called."""
        return label(*self.rows.keys[row])

    @cached_property
    def gradient(self) -> FloatArray:
        """Euclidean norm of the loss's gradient with respect to each output: grad_rms * sqrt(numel), `(R,)`."""
        return self["grad_rms"] * np.sqrt(np.maximum(self["numel"], 0))

    def share(self, count: str, applies: NDArray[np.bool_]) -> FloatArray:
        """A number of channels over all channels, NaN where it is not known or the rule does not apply."""
        number, channels = self[count], self["channels"]
        return np.where(applies & (number >= 0) & (channels > 0), number / np.maximum(channels, 1), np.nan)

    def ends(self, figure: FloatArray) -> list[tuple[int, float, float]]:
        """For each chain its first row and the largest finite `figure` in its first and in its last third.

        The largest, not the mean: branches that begin at zero and unused layers say nothing about what passes through.
        """
        finite = np.isfinite(figure)
        whole = bool(finite.all())
        found = []
        for chain in self.rows.chains:
            rows = chain if whole else chain[finite[chain]]
            if len(rows) >= SHORTEST:
                values, third = figure[rows].tolist(), len(rows) // 3
                found.append((int(rows[0]), max(values[:third]), max(values[-third:])))
        return found
