"""What a run writes about itself: the merged configuration and `run.json` (versions, seed, commit, machine, status).

Reading is done by `reports`; the metrics have their own logger in `metrics`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer

from ics_apps import __version__
from ics_apps.runs.atomic import sweep_parts, write_text_atomically
from ics_apps.runs.layout import CHECKPOINTS, CONFIG, PRECISION, RECORD
from ics_apps.runs.metrics import MetricsLogger

RECORDED_PACKAGES: Final = (
    "torch", "lightning", "jsonargparse", "torchmetrics", "timm", "transformers", "scanpy", "anndata", "numpy", "pandas"
)  # fmt: skip


class RunRecord(Callback):
    """Keep the run directory's `config.yaml`, `run.json` and the rows of `metrics.csv` true through stops and resumes.

    Nothing is written before the data has been set up, so that bad input leaves no directory behind.

    Args:
        run_dir: The run directory.
        config: The merged configuration as YAML text.
        facts: Recorded as they are: `recipe`, `command`, `seed`, `allowed`.
        resumed_at: `(step, epoch)` of the checkpoint that is continued; None for a start at zero.
    """

    def __init__(
        self, run_dir: Path, config: str, facts: dict[str, Any], resumed_at: tuple[int, int] | None = None
    ) -> None:
        self.run_dir = run_dir
        self._config = config
        self._facts = facts
        self._resumed_at = resumed_at
        self._started = time.monotonic()
        self._open = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration and the record, and take the metrics back to the step that is continued."""
        if stage != "fit" or not trainer.is_global_zero or self._open:
            return
        self._open = True
        for folder in (self.run_dir, self.run_dir / CHECKPOINTS):
            sweep_parts(folder)
        save_config(self.run_dir, self._config)
        step = self._resumed_at[0] if self._resumed_at else 0
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLogger):
                logger.rewind(step)
        self._write(self._opening(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the precision that training uses."""
        if trainer.is_global_zero and self._open:
            self._update(precision=_precision(trainer, self.run_dir))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run did not end by itself."""
        if trainer.is_global_zero and self._open:
            stopped = isinstance(exception, KeyboardInterrupt) or type(exception).__name__ == "SIGTERMException"
            self.close("interrupted" if stopped else "failed")

    def close(self, status: str) -> None:
        """Record the end of the run: `finished`, `interrupted` or `failed`."""
        if self._open:
            seconds = round(time.monotonic() - self._started, 1)
            self._update(status=status, finished=_now(), seconds=seconds)

    def note(self, text: str) -> None:
        """Add a sentence that a reader of the run must know."""
        if self._open and text:
            notes = self._read().get("notes", [])
            self._update(notes=[*notes, text] if text not in notes else notes)

    def _opening(self, trainer: Trainer) -> dict[str, Any]:
        before = self._read()
        resumed = before.get("resumed", [])
        if self._resumed_at:
            resumed = [*resumed, {"from_epoch": self._resumed_at[1], "at": _now()}]
        return {
            **self._facts,
            "status": "running",
            "started": before.get("started", _now()) if self._resumed_at else _now(),
            "finished": None,
            "seconds": None,
            "versions": {"python": platform.python_version(), "ics-apps": __version__, **_package_versions()},
            "git": git_state(Path.cwd()),
            "machine": {
                "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                "device": str(trainer.strategy.root_device),
                "platform": platform.platform(),
            },
            "precision": None,
            "callbacks": [type(callback).__name__ for callback in trainer.callbacks],  # type: ignore[attr-defined]
            "notes": before.get("notes", []),
            "resumed": resumed,
        }

    def _read(self) -> dict[str, Any]:
        path = self.run_dir / RECORD
        if not path.is_file():
            return {}
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def _update(self, **changes: Any) -> None:
        self._write({**self._read(), **changes})

    def _write(self, record: dict[str, Any]) -> None:
        write_text_atomically(self.run_dir / RECORD, json.dumps(record, indent=2) + "\n")


def save_config(run_dir: Path, config: str) -> Path:
    """Write `config.yaml`; beside a different one from before, write `config.resume-<n>.yaml` and leave that alone."""
    path = run_dir / CONFIG
    number = 0
    while path.is_file() and path.read_text() != config:
        number += 1
        path = run_dir / f"{Path(CONFIG).stem}.resume-{number}.yaml"
    if not path.is_file():
        write_text_atomically(path, config)
    return path


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that `folder` is at and whether files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _precision(trainer: Trainer, run_dir: Path) -> str:
    chosen = run_dir / PRECISION
    if chosen.is_file():
        choice = json.loads(chosen.read_text())
        return f"{choice['precision']} {choice['memory_format']}"
    return str(trainer.precision)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
