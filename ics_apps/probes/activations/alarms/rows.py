"""What the rows of a table stand for: kinds, classes, the order of the forward. Figures are in `sample`.

It is worked out once and holds for every table with the same rows, which in most runs is every table.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.columns import Key, Table

BoolArray = NDArray[np.bool_]
Chain = NDArray[np.intp]

SHARES: Final = frozenset({"softmax", "softmax2d", "softmin", "logsoftmax"})  # zeros here are answers, not deaths
SHORTEST: Final = 6  # rows a chain needs before its thirds are compared

_COLUMNS: Final = ("layer", "tag", "call", "kind", "type", "dtype", "order")


class Rows:
    """The rows of a table, without their figures.

    Args:
        table: the monitor's table, R rows.
    """

    def __init__(self, table: Table) -> None:
        self._lists = _lists(table)
        self.layer, self.tag, self.call, self.kind, types, self.dtype, self.order = self._lists
        self.type = [name.lower() for name in types]
        self.keys: list[Key] = list(zip(self.layer, self.tag, self.call, strict=True))
        self._kinds: dict[tuple[str, ...], BoolArray] = {}
        self._types: dict[frozenset[str], BoolArray] = {}

    def fit(self, table: Table) -> bool:
        """Whether the rows of `table` are these."""
        return _lists(table) == self._lists

    def __len__(self) -> int:
        return len(self.keys)

    def is_kind(self, *kinds: str) -> BoolArray:
        """Which rows are of one of the kinds."""
        found = self._kinds.get(kinds)
        if found is None:
            found = self._kinds[kinds] = np.array([kind in kinds for kind in self.kind], bool)
        return found

    def of_types(self, names: frozenset[str]) -> BoolArray:
        """Which rows are of a class with one of the names, which are in lower case."""
        found = self._types.get(names)
        if found is None:
            found = self._types[names] = np.array([name in names for name in self.type], bool)
        return found

    @cached_property
    def half(self) -> BoolArray:
        """Which outputs are float16."""
        return np.array([dtype in ("float16", "torch.float16") for dtype in self.dtype], bool)

    @cached_property
    def often(self) -> BoolArray:
        """Which rows are of a layer that has more than one row: several calls or tags."""
        times = Counter(self.layer)
        return np.array([times[layer] > 1 for layer in self.layer], bool)

    @cached_property
    def forward_order(self) -> list[int]:
        """Rows from the first layer to the last, calls of a layer one after the other."""
        return sorted(range(len(self)), key=lambda row: (self.order[row], self.call[row]))

    @cached_property
    def passes(self) -> list[Chain]:
        """Rows of one pass through a net in forward order, without streams.

        Layers of one pass share their tag, their call and the number of calls in the step: a discriminator that runs
        three times is kept apart from the generator that runs once, since their gradients come from unlike losses.
        """
        times = Counter((layer, tag) for layer, tag, _ in self.keys)
        found: dict[tuple[str, int, int], list[int]] = {}
        for row in self.forward_order:
            layer, tag, call = self.keys[row]
            if self.kind[row] != "stream":
                found.setdefault((tag, call, times[layer, tag]), []).append(row)
        return [np.array(rows, np.intp) for rows in found.values()]

    @cached_property
    def chains(self) -> list[Chain]:
        """The passes of at least six rows."""
        return [rows for rows in self.passes if len(rows) >= SHORTEST]

    @cached_property
    def inputs(self) -> BoolArray:
        """What sees the data before all others: the first row of each pass."""
        found = np.zeros(len(self), bool)
        found[[rows[0] for rows in self.passes]] = True
        return found

    @cached_property
    def outputs(self) -> BoolArray:
        """What a net gives to its loss: the last row of each pass. Its size is that of the targets."""
        found = np.zeros(len(self), bool)
        found[[rows[-1] for rows in self.passes]] = True
        return found

    @cached_property
    def gates_and_outputs(self) -> BoolArray:
        """Activations that are most likely a gate or the output of a net, judged from the layers beside them.

        An activation is one if no layer follows it, or if it comes after an activation and is of another type than the
        next one, or than the one before it where none follows: the sigmoid of a squeeze-and-excitation block among
        SiLUs, the tanh of a generator before the leaky ReLUs of its discriminator. The first activation never is.
        """
        type_at = {
            order: name
            for order, name, kind in zip(self.order, self.type, self.kind, strict=True)
            if kind == "activation"
        }
        exempt = {max(self.order, default=0)}
        sequence = sorted(order for order, name in type_at.items() if name not in SHARES)
        for index, order in enumerate(sequence[1:], start=1):
            beside = sequence[index + 1] if index + 1 < len(sequence) else sequence[index - 1]
            if type_at[beside] != type_at[order]:
                exempt.add(order)
        return np.array([order in exempt and order in type_at for order in self.order], bool)


def _lists(table: Table) -> list[list[Any]]:
    return [table[name].tolist() for name in _COLUMNS]
