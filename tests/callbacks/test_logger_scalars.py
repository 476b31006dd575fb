"""Scalars reach the loggers that take them; one that fails neither ends the training nor is asked again."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from ics_apps.callbacks.logger_scalars import LoggerScalars


class Kept(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep none."""


class Broken(Kept):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        raise OSError("disk full")


class Refusing(Kept):
    accepts_monitor_scalars = False


def test_scalars_are_logged_at_their_step() -> None:
    logger = Kept()
    LoggerScalars("Probe").write([logger], 7, {"hessian/trace": 2.0})
    assert logger.rows == [(7, {"hessian/trace": 2.0})]


def test_no_scalars_are_not_logged() -> None:
    logger = Kept()
    LoggerScalars("Probe").write([logger], 7, {})
    assert logger.rows == []


def test_a_logger_that_refuses_is_left_out() -> None:
    refusing, kept = Refusing(), Kept()
    scalars = LoggerScalars("Probe")
    scalars.write([refusing, kept], 0, {"a": 1.0})
    assert refusing.rows == []
    assert len(kept.rows) == 1
    assert scalars.takers([refusing, kept]) == [kept]


def test_a_logger_that_fails_is_named_once_and_the_others_go_on() -> None:
    broken, kept = Broken(), Kept()
    scalars = LoggerScalars("Probe")
    with pytest.warns(UserWarning, match="Probe: Broken failed and gets no more scalars: OSError: disk full"):
        scalars.write([broken, kept], 0, {"a": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scalars.write([broken, kept], 1, {"a": 2.0})
    assert len(broken.rows) == 1
    assert [step for step, _ in kept.rows] == [0, 1]


def test_a_logger_cannot_change_what_the_next_one_gets() -> None:
    class Taking(Kept):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            metrics.clear()

    kept = Kept()
    LoggerScalars("Probe").write([Taking(), kept], 0, {"a": 1.0})
    assert kept.rows == [(0, {"a": 1.0})]
