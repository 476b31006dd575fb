"""Read the weights that others trained, as plain tensors by name. Which of them fits a model, see `weight_matching`.

Nothing that could run code is unpickled: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ics_apps.runs.checkpoints import CheckpointError, read_checkpoint
from ics_apps.runs.directory import best_checkpoint, holds_run

BUNDLE_WEIGHTS: Final = Path("models/model.pt")
BUNDLE_METADATA: Final = Path("configs/metadata.json")
# Where Lightning, nnU-Net, MONAI, timm and most training scripts put the state dict inside a larger dict.
_INSIDE: Final = ("state_dict", "network_weights", "model_state_dict", "model", "net")


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and in words where they come from."""

    tensors: dict[str, Tensor]
    origin: str


def read_weights(path: Path) -> Weights:
    """The weights at `path`, on the CPU.

    Args:
        path: A Lightning checkpoint; a state dict written by `torch.save` (torchvision, timm, SMP), bare or under the
            key `state_dict`, `network_weights`, `model_state_dict`, `model` or `net`; a `.safetensors` file; a run
            directory, which stands for its best checkpoint; a MONAI bundle, which stands for its `models/model.pt`.

    Raises:
        CheckpointError: There is nothing readable, or no tensor in it.
        ImportError: A `.safetensors` file, and the package safetensors is not installed.
    """
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise CheckpointError(f"--init_from is {path}, which does not exist.")
    content = _safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    tensors = _tensors(content)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name; give a checkpoint or a state dict.")
    return Weights(tensors, str(path))


def _from_folder(folder: Path) -> Weights:
    bundled = folder / BUNDLE_WEIGHTS
    if bundled.is_file():
        return Weights(read_weights(bundled).tensors, _bundle_in_words(folder))
    if holds_run(folder):
        return read_weights(best_checkpoint(folder))
    raise CheckpointError(
        f"--init_from is the folder {folder}, which is neither a run directory nor a MONAI bundle (with "
        f"{BUNDLE_WEIGHTS}); give the file with the weights."
    )


def _bundle_in_words(folder: Path) -> str:
    """`MONAI bundle NAME VERSION (classes: ...)`, as far as its metadata say so."""
    words = f"MONAI bundle {folder}"
    try:
        about = json.loads((folder / BUNDLE_METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return words
    named = " ".join(str(about[key]) for key in ("name", "version") if about.get(key))
    outputs = about.get("network_data_format", {}).get("outputs", {})
    classes: dict[str, str] = next(
        (output["channel_def"] for output in outputs.values() if output.get("channel_def")), {}
    )
    told = ", ".join(f"{index} {name}" for index, name in classes.items())
    return words + (f", {named}" if named else "") + (f" (its classes: {told})" if told else "")


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path.name} needs the package safetensors: pip install safetensors") from error
    try:
        return dict(load_file(path))
    except Exception as error:  # the package's own error class is compiled, a subclass of Exception only
        raise CheckpointError(f"{path} could not be read ({type(error).__name__}: {error}).") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    for key in _INSIDE:
        if isinstance(content.get(key), dict):
            return _tensors(content[key])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
