"""The monitor's scalars for the loggers of a Trainer: which figures, under which keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning.pytorch.loggers import Logger

from ics_apps.callbacks.logger_scalars import LoggerScalars
from ics_apps.nearest import did_you_mean
from ics_apps.probes.activations.columns import STATISTICS, Table, label


class MonitorLog:
    """Sends chosen statistics of each table to the loggers.

    Args:
        statistics: numeric columns of the table.
        everything: send those of every layer; otherwise those of norms and streams, where there are any.

    Raises:
        ValueError: an unknown statistic.
    """

    def __init__(self, statistics: Sequence[str], *, everything: bool) -> None:
        for statistic in statistics:
            if statistic not in STATISTICS:
                hint = did_you_mean(statistic, STATISTICS)
                raise ValueError(f"log_scalars: '{statistic}' is no statistic of the monitor{hint}")
        self._statistics = tuple(statistics)
        self._everything = everything
        self._loggers = LoggerScalars("ActivationMonitor")

    def write(self, loggers: Sequence[Logger], step: int, table: Table, more: Mapping[str, float]) -> None:
        """Log one table, and scalars that are not in it; a logger that fails once gets no more."""
        if self._loggers.takers(loggers):
            self._loggers.write(loggers, step, {**self._scalars(table), **more})

    def _scalars(self, table: Table) -> dict[str, float]:
        telling = [kind in ("stream", "norm") for kind in table["kind"]]
        rows = [row for row, chosen in enumerate(telling) if chosen or self._everything or not any(telling)]
        scalars = {}
        for row in rows:
            name = label(table["layer"][row], table["tag"][row], int(table["call"][row]))
            for statistic in self._statistics:
                scalars[f"monitor/{name}/{statistic}"] = float(table[statistic][row])
        return {key: value for key, value in scalars.items() if not math.isnan(value)}
