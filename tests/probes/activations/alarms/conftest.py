from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ics_apps.probes.activations.alarms import Alarm, Watch, make_rules
from ics_apps.probes.activations.columns import COLUMNS, HISTOGRAM, Table

Build = Callable[..., Table]

_HEALTHY: dict[str, Any] = {
    "tag": "",
    "call": 0,
    "type": "",
    "dtype": "float32",
    "numel": 4096,
    "count": 2048,
    "nonfinite_count": 0,
    "channels": 64,
    "dead_channels": -1,
    "constant_channels": -1,
    "mean": 0.0,
    "std": 1.0,
    "rms": 1.0,
    "min": -4.0,
    "max": 4.0,
    "drift_w1": 0.1,
    "grad_rms": 1e-3,
}


def build(layers: Sequence[str], **columns: Any) -> Table:
    """A healthy table; `layers` are "kind:name" or "kind:name:Type", columns are one value or one a row."""
    parts = [[*layer.split(":"), ""][:3] for layer in layers]
    values: Mapping[str, Any] = {
        **dict.fromkeys(COLUMNS, np.nan),
        **_HEALTHY,
        "kind": [part[0] for part in parts],
        "layer": [part[1] for part in parts],
        "type": [part[2] for part in parts],
        "order": list(range(len(parts))),
        **columns,
    }
    count = len(parts)
    table = {
        name: np.array(np.broadcast_to(np.asarray(values[name], dtype), count))
        for name, dtype in COLUMNS.items()
        if name != HISTOGRAM
    }
    return {**table, HISTOGRAM: np.zeros((count, 66), np.uint16)}


@pytest.fixture(scope="session")
def table() -> Build:
    """Builds a table of rows that no rule minds, with the given columns changed."""
    return build


@pytest.fixture(scope="session")
def alarms_of() -> Callable[..., list[Alarm]]:
    """What one rule, or all for None, says of tables that follow each other by `every` steps."""

    def judge(rule: str | None, tables: Iterable[Table], *, every: int = 1, **options: Any) -> list[Alarm]:
        watch = Watch(make_rules(None if rule is None else {rule: options}))
        return [alarm for index, table in enumerate(tables) for alarm in watch.check(table, index * every, 0)]

    return judge
