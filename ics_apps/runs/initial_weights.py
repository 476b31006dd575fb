"""Start a new run from weights that exist, without their optimizer, schedule or counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ics_apps.runs.checkpoints import CheckpointError
from ics_apps.runs.weight_files import read_weights
from ics_apps.runs.weight_matching import Match, match_weights

_MOST_NAMES = 5


class InitialWeights(Callback):
    """Copy every tensor of a file that fits into the model, and say which of the model's were left as initialised.

    Args:
        path: What `ics_apps.runs.weight_files.read_weights` reads; which tensors fit, see
            `ics_apps.runs.weight_matching.match_weights`.

    Raises:
        CheckpointError: The file cannot be read, or none of its tensors fits the model.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise CheckpointError(f"--init_from is {path}, which does not exist.")
        self.path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights; the model has been built by now."""
        weights = read_weights(self.path)
        own = pl_module.state_dict()
        match = match_weights(own, weights.tensors, _block(pl_module))
        if not match.tensors:
            raise CheckpointError(
                f"no tensor of {self.path} has the name and shape of one of the model's {len(own)}: the file begins "
                f"with {_few(weights.tensors)}, the model with {_few(own)}."
            )
        pl_module.load_state_dict(match.tensors, strict=False)
        if trainer.is_global_zero:
            print(f"started from {weights.origin}: {_sentence(match, own)}", flush=True)  # noqa: T201


def _sentence(match: Match, own: Mapping[str, object]) -> str:
    parts = [f"{len(match.tensors)} of {len(own)} tensors"]
    there, here = match.renamed
    if there != here:
        parts.append(f"{there or '(no prefix)'} there is {here or '(no prefix)'} here")
    parts += [f"{name} is the {how}" for name, how in match.adapted.items()]
    left = sorted(set(own) - set(match.tensors))
    if left:
        parts.append(f"kept as initialised: {_few(left)}")
    if match.other_shape:
        parts.append(f"of another shape: {_few(f'{name} {shapes}' for name, shapes in match.other_shape.items())}")
    if match.unused:
        parts.append(f"not used: {_few(match.unused)}")
    return "; ".join(parts)


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_MOST_NAMES]) + (f" ... ({len(shown)})" if len(shown) > _MOST_NAMES else "")


def _block(model: nn.Module) -> int:
    """Positions in an input channel, if a net of the model folds space into channels."""
    folding = (module for module in model.modules() if isinstance(getattr(module, "fold", None), int))
    return next((int(module.fold) ** int(module.dim) for module in folding), 1)  # type: ignore[arg-type]
