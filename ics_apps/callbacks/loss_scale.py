"""What a Trainer multiplies losses by under float16, so that small gradients do not vanish."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def scaler_of(trainer: Trainer) -> Any:
    """What multiplies the loss, and skips steps that overflow; None without one."""
    return getattr(trainer.precision_plugin, "scaler", None)


def loss_scale(trainer: Trainer) -> float:
    """The present factor, 1 without a scaler."""
    scaler = scaler_of(trainer)
    return float(scaler.get_scale()) if scaler is not None else 1.0
