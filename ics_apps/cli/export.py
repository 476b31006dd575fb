"""`ics-apps export RUN`: the net of a run as a file, and `predict --onnx`, which takes such a file for a checkpoint.

The file itself is made in `ics_apps.nets.export`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ics_apps.cli.command import CommandError, parse_command

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule

FORMATS: Final = {"onnx": ".onnx", "torch_export": ".pt2"}
FACTS: Final = "data_facts"
_SIZE: Final = 64


def export_verb(arguments: list[str]) -> int:
    """`ics-apps export RUN [--format onnx|torch_export] [--out FILE] [--ckpt_path FILE] [--allow PACKAGE]`.

    Raises:
        CommandError: No run or no net.
        ExportError: The net cannot be exported.
    """
    parser = argparse.ArgumentParser(
        prog="ics-apps export", description="Write the net of a run as a file for other programs.", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or a recipe: its newest run")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: model.onnx or model.pt2 in the run directory"
    )
    parser.add_argument("--ckpt_path", default="best", metavar="WORD|FILE", help="`best` (default), `last` or a file")
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE", help="as in `ics-apps run`")
    options = parser.parse_args(arguments)
    allowed = [word for package in options.allow for word in ("--allow", package)]
    command = parse_command("export", [options.run, "--ckpt_path", options.ckpt_path, *allowed])
    if command is None or command.checkpoint is None:
        raise CommandError(f"{options.run} has no checkpoint to export.")
    from ics_apps.cli.parsing import allow_imports
    from ics_apps.cli.training import TrainingCLI, quiet
    from ics_apps.runs.checkpoints import read_checkpoint

    allow_imports(command.allow)
    with quiet():
        cli = TrainingCLI(command)
    checkpoint = read_checkpoint(command.checkpoint)
    cli.model.on_load_checkpoint(checkpoint)
    _require_net(cli.model)
    cli.model.load_state_dict(checkpoint["state_dict"])
    out = options.out or command.run_dir / f"model{FORMATS[options.format]}"
    write_export(cli.model, cli.datamodule, options.format, out)
    return 0


def write_export(task: LightningModule, data: LightningDataModule | None, kind: Any, out: Path) -> None:
    """Write the file with what its user has to know: the facts about the data and how inputs are normalised.

    Args:
        task: With its `net`, and its `facts` about the data, trained.
        data: Its `normalize` and `patch_size`, where it has them, are kept and taken as the example's size.
        kind: "onnx" or "torch_export".
        out: The file.
    """
    from ics_apps import __version__
    from ics_apps.nets.export import export_net
    from ics_apps.runs.atomic import write_bytes_atomically

    facts: dict[str, Any] = task.facts  # type: ignore[assignment]
    patch = getattr(data, "patch_size", _SIZE)
    size = [patch] * facts["dim"] if isinstance(patch, int) else list(patch)
    metadata = {
        FACTS: facts,
        "normalize": getattr(data, "normalize", None),
        "input": "float32 (B, C, *S), normalised",
        "output": "logits float32 (B, K, *S)",
        "ics_apps": __version__,
    }
    exported = export_net(task.net, facts["in_channels"], size, kind, metadata)  # type: ignore[arg-type]
    write_bytes_atomically(out, exported.content)
    shapes = ", ".join("x".join(map(str, shape)) for shape in exported.shapes)
    print(f"{out}: differs from the net by at most {exported.difference:.1e} of its logits on {shapes}")  # noqa: T201
    print(exported.fixed or "batch and space may have any size")  # noqa: T201


def stand_in(task: LightningModule, file: Path) -> None:
    """Let an exported file take the place of the task's net, and bring the facts about the data.

    Raises:
        CommandError: The file was not written by `ics-apps export`.
        ExportError: It cannot be read.
    """
    from ics_apps.nets.export import OnnxNet

    net = OnnxNet(file)
    if FACTS not in net.metadata:
        raise CommandError(f"{file} does not tell its classes; --onnx takes files written by `ics-apps export`.")
    task.facts, task.net = net.metadata[FACTS], net


def _require_net(task: LightningModule) -> None:
    from torch import nn

    if not isinstance(getattr(task, "net", None), nn.Module) or not getattr(task, "facts", None):
        raise CommandError(
            f"{type(task).__name__} has no net to export: a task keeps it as `net`, built when a checkpoint is loaded, "
            "with `facts` about its data."
        )
