"""Start a new run from the weights of a checkpoint, without its optimizer, schedule or counters."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from ics_apps.runs.checkpoints import CheckpointError, read_checkpoint


class InitialWeights(Callback):
    """Copy every tensor of a checkpoint whose name and shape agree into the model, and say which were left out.

    Args:
        path: A Lightning checkpoint, or a plain state dict written by `torch.save`.

    Raises:
        CheckpointError: The file cannot be read, or none of its tensors fits the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"--init_from is {path}, which does not exist.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights; the model has been built by now."""
        checkpoint = read_checkpoint(self.path)
        weights = checkpoint.get("state_dict", checkpoint)
        own = pl_module.state_dict()
        fitting = {name: tensor for name, tensor in weights.items() if _fits(own.get(name), tensor)}
        if not fitting:
            raise CheckpointError(f"no tensor of {self.path} has the name and shape of one of the model's {len(own)}.")
        pl_module.load_state_dict(fitting, strict=False)
        left = sorted(set(own) - set(fitting))
        if trainer.is_global_zero:
            kept = f"; kept as initialised: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}" if left else ""
            print(f"started from {self.path}: {len(fitting)} of {len(own)} tensors{kept}", flush=True)  # noqa: T201


def _fits(own: object, given: object) -> bool:
    return getattr(own, "shape", None) is not None and getattr(own, "shape", 0) == getattr(given, "shape", 1)
