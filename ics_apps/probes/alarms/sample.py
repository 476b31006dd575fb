"""One table as the rules see it: float64 columns, forward order, and what is remembered of each row's key."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.alarms.memory import Memory
from ics_apps.probes.columns import Table, label

FloatArray = NDArray[np.float64]
Chain = NDArray[np.intp]

_SHORTEST = 6  # rows a chain needs before its thirds are compared


class Sample:
    """Columns by name and the past of each row.

    Args:
        table: the monitor's table, R rows.
        step: optimizer steps done.
        memory: what is remembered of earlier samples.
        slots: place of each row in `memory`, `(R,)`.
        fp16_scaled: whether losses are scaled for float16, so that a step with inf is skipped on purpose.
    """

    def __init__(
        self, table: Table, step: int, memory: Memory, slots: NDArray[np.intp], *, fp16_scaled: bool = False
    ) -> None:
        self.table = table
        self.step = step
        self.fp16_scaled = fp16_scaled
        self.rows = len(slots)
        self._memory = memory
        self._slots = slots
        self._columns: dict[str, FloatArray] = {}

    def __getitem__(self, name: str) -> FloatArray:
        """A column of numbers as float64, `(R,)`."""
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = self.table[name].astype(np.float64)
        return found

    def remembered(self, name: str) -> NDArray[Any]:
        """What `Memory` holds under `name` for each row, before this sample is taken in."""
        return getattr(self._memory, name)[self._slots]  # type: ignore[no-any-return]

    def label(self, row: int) -> str:
        """How the layer of a row is called."""
        return label(self.table["layer"][row], self.table["tag"][row], int(self.table["call"][row]))

    @cached_property
    def kind(self) -> list[str]:
        """Kind of each row."""
        return self.table["kind"].tolist()  # type: ignore[no-any-return]

    def is_kind(self, *kinds: str) -> NDArray[np.bool_]:
        """Which rows are of one of the kinds."""
        return np.array([kind in kinds for kind in self.kind], bool)

    @cached_property
    def forward_order(self) -> Chain:
        """Rows from the first layer to the last, calls of a layer one after the other."""
        return np.lexsort((self.table["call"], self.table["order"]))

    @cached_property
    def chains(self) -> list[Chain]:
        """Rows of one pass through the model in forward order, for passes of at least six layers.

        Layers of one pass share their tag, their call and the number of calls in the step: a discriminator that runs
        three times is kept apart from the generator that runs once, since their gradients come from unlike losses.
        """
        table = self.table
        names = list(zip(table["layer"].tolist(), table["tag"].tolist(), strict=True))
        times = Counter(names)
        calls = table["call"].tolist()
        found: dict[tuple[str, int, int], list[int]] = {}
        kinds = self.kind
        for row in self.forward_order.tolist():
            if kinds[row] != "stream":
                found.setdefault((names[row][1], calls[row], times[names[row]]), []).append(row)
        return [np.array(rows, np.intp) for rows in found.values() if len(rows) >= _SHORTEST]

    def ends(self, figure: FloatArray) -> list[tuple[int, float, float]]:
        """For each chain its first row and the largest finite `figure` in its first and in its last third.

        The largest, not the mean: branches that begin at zero and unused layers say nothing about what passes through.
        """
        clean = np.where(np.isfinite(figure), figure, np.nan)
        found = []
        for chain in self.chains:
            values = clean[chain]
            seen = ~np.isnan(values)
            if seen.sum() >= _SHORTEST:
                rows, values = chain[seen], values[seen]
                third = len(rows) // 3
                found.append((int(rows[0]), float(values[:third].max()), float(values[-third:].max())))
        return found
