"""A quiet Trainer, with the monitor in it or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lightning.pytorch import LightningModule, Trainer

from ics_apps.callbacks import ActivationMonitor
from tests.examples.kept import ALL


def make_trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **options})


@pytest.fixture
def table(tmp_path: Path) -> Callable[[], pd.DataFrame]:
    """Read what was written, rows in the order of the forwards."""

    def read() -> pd.DataFrame:
        frame = pd.read_parquet(tmp_path / "monitor")
        return frame.sort_values(["step", "order", "tag", "call"], ignore_index=True)

    return read


@pytest.fixture
def trainer_with(tmp_path: Path) -> Callable[..., Trainer]:
    """A Trainer with these callbacks."""
    return lambda *callbacks, **options: make_trainer(tmp_path, *callbacks, **options)


@pytest.fixture
def fit(trainer_with: Callable[..., Trainer], table: Callable[[], pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Train with a monitor that reads every value of every step, and give back its table."""

    def run(module: LightningModule, data: Any = None, *callbacks: Any, **options: Any) -> pd.DataFrame:
        watch = ActivationMonitor(every_n_steps=1, sample_size=ALL, **options.pop("monitor", {}))
        trainer_with(watch, *callbacks, **options).fit(module, data)
        return table()

    return run
