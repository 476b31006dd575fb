"""The loss that a LightningModule trains on, as a function that a probe may call as often as it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ics_apps.probes.preserve import ProbeError

PROBE_LOSS: Final = "probe_loss"
_LOGGING: Final[tuple[str, ...]] = ("log", "log_dict", "log_grad_norm")


def training_loss(
    trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, name: str | None = None
) -> Callable[[], Tensor]:
    """The loss of a batch, under the trainer's precision, as a function without arguments.

    Args:
        trainer: the trainer.
        pl_module: its module.
        batch: a batch on the module's device.
        batch_idx: its number.
        name: the method `(batch) -> loss` to use; None for `probe_loss` if the module has it, else `training_step`.

    Returns:
        The function. What the module logs inside goes nowhere.

    Raises:
        ProbeError: the module steps its optimizers by hand and has no `probe_loss`, or no method of this name.
    """
    chosen = name or (PROBE_LOSS if hasattr(pl_module, PROBE_LOSS) else "training_step")
    if not hasattr(pl_module, chosen):
        raise ProbeError(f"{type(pl_module).__name__} has no method '{chosen}'; write one that takes a batch.")
    if chosen == "training_step" and not pl_module.automatic_optimization:
        raise ProbeError(
            f"{type(pl_module).__name__} steps its optimizers by hand, so its training_step is no function of the "
            f"weights; give it a method `{PROBE_LOSS}(batch)` that returns the scalar loss to be probed."
        )

    arguments = (batch, batch_idx) if chosen == "training_step" else (batch,)

    def loss() -> Tensor:
        with trainer.strategy.precision_plugin.train_step_context(), _unlogged(pl_module):
            found: Any = getattr(pl_module, chosen)(*arguments)
        loss: Tensor = found["loss"] if isinstance(found, dict) else found
        return loss

    return loss


@contextmanager
def _unlogged(pl_module: LightningModule) -> Iterator[None]:
    own = {name: pl_module.__dict__[name] for name in _LOGGING if name in pl_module.__dict__}
    pl_module.__dict__.update(dict.fromkeys(_LOGGING, _ignore))
    try:
        yield
    finally:
        for name in _LOGGING:
            del pl_module.__dict__[name]
        pl_module.__dict__.update(own)


def _ignore(*_: Any, **__: Any) -> None:
    """Log nothing."""
