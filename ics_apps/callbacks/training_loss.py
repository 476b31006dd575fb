"""The loss that a LightningModule trains on, as a function that a probe may call as often as it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
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
        The function. What the module logs inside goes nowhere, and what it changes in its batch is a copy's. It raises
        `ProbeError` if the step returns a dict without a loss.

    Raises:
        ProbeError: the module steps its optimizers by hand or fetches its batches itself and has no `probe_loss`, or no
            method of this name.
    """
    chosen = name or (PROBE_LOSS if hasattr(pl_module, PROBE_LOSS) else "training_step")
    if not hasattr(pl_module, chosen):
        raise ProbeError(f"{type(pl_module).__name__} has no method '{chosen}'; write one that takes a batch.")
    method = getattr(pl_module, chosen)
    numbered = False
    if chosen == "training_step":
        _check_is_function(pl_module)
        # As in Lightning's loop: the number of the batch may have any name, or be left out.
        numbered = is_param_in_hook_signature(method, "batch_idx", min_args=2)

    def loss() -> Tensor:
        # A step may work in place, and the next call has to find the batch as it came.
        own = apply_to_collection(batch, Tensor, _copy)
        with trainer.strategy.precision_plugin.train_step_context(), unlogged(pl_module):
            found: Any = method(own, batch_idx) if numbered else method(own)
        if isinstance(found, Mapping):
            if "loss" not in found:
                keys = ", ".join(map(repr, found))
                raise ProbeError(f"{chosen} returns a dict with the keys {keys}; add the scalar loss as 'loss'.")
            found = found["loss"]
        loss: Tensor = found
        return loss

    return loss


def _check_is_function(pl_module: LightningModule) -> None:
    """Whether a training step maps a batch to a loss and does nothing else."""
    name = type(pl_module).__name__
    advice = f"give it a method `{PROBE_LOSS}(batch)` that returns the scalar loss to be probed."
    if not pl_module.automatic_optimization:
        raise ProbeError(
            f"{name} steps its optimizers by hand, so its training_step is no function of the weights; {advice}"
        )
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise ProbeError(f"The training_step of {name} fetches its batches itself; {advice}")


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


@contextmanager
def unlogged(pl_module: LightningModule) -> Iterator[None]:
    """Inside, what the module logs goes nowhere."""
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
