"""Scalars for the loggers of a Trainer, which may refuse them or fail without ending the training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from lightning.pytorch.loggers import Logger


class LoggerScalars:
    """Sends scalars to each logger that takes them; a logger that fails once gets no more.

    A logger with the attribute `accepts_monitor_scalars = False` is left out.

    Args:
        sender: named in warnings.
    """

    def __init__(self, sender: str) -> None:
        self._sender = sender
        self._failed: set[str] = set()

    def takers(self, loggers: Sequence[Logger]) -> list[Logger]:
        """Those of the loggers that take scalars."""
        return [
            logger
            for logger in loggers
            if getattr(logger, "accepts_monitor_scalars", True) and type(logger).__name__ not in self._failed
        ]

    def write(self, loggers: Sequence[Logger], step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars at a step."""
        for logger in self.takers(loggers) if scalars else ():
            try:
                logger.log_metrics(dict(scalars), step=step)
            except Exception as error:  # a logger may raise anything, and training must go on
                name = type(logger).__name__
                self._failed.add(name)
                warnings.warn(
                    f"{self._sender}: {name} failed and gets no more scalars: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
