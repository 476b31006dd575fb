"""Execute a training command: LightningCLI in subclass mode, inside one run directory.

`command` has read the line already; `parsing` turns parser errors into one sentence. Here torch is imported.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ics_apps.cli.command import RUN_DIR_OF_RANK_ZERO, TRAINING_VERBS, Command
from ics_apps.cli.export import stand_in
from ics_apps.cli.parsing import OneLineParser, allow_imports, plain_sentences
from ics_apps.runs.atomic import write_text_atomically
from ics_apps.runs.checkpoints import (
    AtomicCheckpointIO,
    ResumePoint,
    RunCheckpoint,
    newest_readable,
    resume_point,
)
from ics_apps.runs.initial_weights import InitialWeights
from ics_apps.runs.layout import BEST_CHECKPOINT, CHECKPOINTS, CONFIG, METRICS_SUMMARY, PREDICTIONS, REPORT
from ics_apps.runs.metrics import MetricsLogger
from ics_apps.runs.progress import EpochLines
from ics_apps.runs.record import RunRecord
from ics_apps.runs.seeding import SeedEveryEpoch

EXIT_SIGTERM: Final = 143


class ResumeError(ValueError):
    """A resume that was asked to change what the checkpoint decides."""


def execute(command: Command) -> int:
    """Run the command; returns the exit code.

    Raises:
        UsageError: A key, value or class of the recipe is wrong.
        ResumeError: A resume that also changes the model.
    """
    allow_imports(command.allow)
    os.environ[RUN_DIR_OF_RANK_ZERO] = str(command.run_dir)  # read by the further processes that a strategy starts
    with quiet():
        cli = TrainingCLI(command)
        try:
            return _VERBS[command.verb](cli)
        except SIGTERMException:
            _say_how_to_continue(command, "SIGTERM")
            return EXIT_SIGTERM
        except SystemExit as stop:
            if cli.trainer.interrupted and command.verb in TRAINING_VERBS:
                _say_how_to_continue(command, "Ctrl-C")
            return stop.code if isinstance(stop.code, int) else 1


class TrainingCLI(LightningCLI):
    """LightningCLI whose trainer writes into one run directory and can be continued from it.

    Args:
        command: The command line, already read.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.resume = _resume_point(command)
        self.record: RunRecord | None = None
        configs = [word for path in command.configs for word in ("--config", str(path))]
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            parser_class=OneLineParser,
            args=[*configs, *command.overrides],
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`checkpoint.monitor` and `checkpoint.mode` choose the best epoch."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what `command` left over (`sys.argv` plays no part)."""
        with plain_sentences():
            self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a refused argument is told in the sentence of the class that refused it."""
        with plain_sentences():
            super().instantiate_classes()

    def before_instantiate_classes(self) -> None:
        """Refuse a resume that changes what the checkpoint decides."""
        if self.command.resume:
            _refuse_changed_model(self.command.run_dir, self.config_text())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer our logger, checkpoint writer and callbacks, beside those of the recipe."""
        own = self._own_callbacks()
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": own}
        configured = self.config_init["trainer"]
        kwargs["default_root_dir"] = str(self.command.run_dir)
        kwargs["logger"] = [MetricsLogger(self.command.run_dir), *_as_list(configured.get("logger"))]
        kwargs["plugins"] = [AtomicCheckpointIO(), *_as_list(configured.get("plugins"))]
        if not sys.stdout.isatty():  # a pipe or a log file: one line an epoch instead of bars and boxes
            for switch in ("enable_progress_bar", "enable_model_summary"):
                if configured.get(switch) is None:
                    kwargs[switch] = False
        return super().instantiate_trainer(**kwargs)

    def config_text(self) -> str:
        """The merged configuration as YAML, without what belongs to this machine and call."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_link_targets=False, skip_unset=False))
        config.pop("config", None)
        config["trainer"].pop("default_root_dir", None)
        text: str = yaml.safe_dump(config, sort_keys=False)
        return text

    def _own_callbacks(self) -> list[Any]:
        callbacks: list[Any] = [] if sys.stdout.isatty() else [EpochLines()]
        if self.command.verb not in TRAINING_VERBS:
            return callbacks
        seed = int(self.config["seed_everything"])
        resumed_at = (self.resume.step, self.resume.epoch) if self.resume else None
        facts = {
            "recipe": self.command.recipe, "command": list(self.command.argv), "seed": seed,
            "allowed": list(self.command.allow),
        }  # fmt: skip
        self.record = RunRecord(self.command.run_dir, self.config_text(), facts, resumed_at)
        initial = [InitialWeights(self.command.init_from)] if self.command.init_from else []
        return [*callbacks, SeedEveryEpoch(seed), self.record, *initial]


def _fit(cli: TrainingCLI) -> int:
    _announce(cli)
    checkpoint = cli.resume.path if cli.resume else None
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if cli.record and cli.command.verb == "fit":
        cli.record.close("finished")
    return EXIT_SIGTERM if cli.trainer.received_sigterm else 0


def _run(cli: TrainingCLI) -> int:
    code = _fit(cli)
    if code:
        return code
    best = cli.command.run_dir / CHECKPOINTS / BEST_CHECKPOINT
    checkpoint = best if best.is_file() else None
    results = cli.trainer.test(
        cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True
    )
    if cli.trainer.received_sigterm:
        return EXIT_SIGTERM
    if not cli.trainer.is_global_zero:
        return 0
    metrics = _ordered(results)
    write_text_atomically(cli.command.run_dir / METRICS_SUMMARY, json.dumps(metrics, indent=2) + "\n")
    if cli.record:
        cli.record.note(_split_note(cli))
        cli.record.close("finished")
    from ics_apps.reports import write_report

    write_report(cli.command.run_dir)
    _print_metrics(cli, metrics)
    return 0


def _validate(cli: TrainingCLI) -> int:
    return _evaluate(cli, cli.trainer.validate)


def _test(cli: TrainingCLI) -> int:
    return _evaluate(cli, cli.trainer.test)


def _evaluate(cli: TrainingCLI, stage: Any) -> int:
    results = stage(
        cli.model, datamodule=cli.datamodule, ckpt_path=cli.command.checkpoint, verbose=False, weights_only=True
    )
    if cli.trainer.is_global_zero:
        _print_metrics(cli, _ordered(results))
    return 0


def _predict(cli: TrainingCLI) -> int:
    if cli.command.onnx:
        stand_in(cli.model, cli.command.onnx)
    cli.trainer.predict(
        cli.model, datamodule=cli.datamodule, ckpt_path=cli.command.checkpoint, return_predictions=False,
        weights_only=True,
    )  # fmt: skip
    written = cli.command.run_dir / PREDICTIONS
    if cli.trainer.is_global_zero and written.is_dir():
        print(f"predictions: {written}", flush=True)  # noqa: T201
    return 0


_VERBS = {"run": _run, "fit": _fit, "validate": _validate, "test": _test, "predict": _predict}


def _resume_point(command: Command) -> ResumePoint | None:
    if not command.resume:
        return None
    point = resume_point(command.checkpoint) if command.checkpoint else newest_readable(command.run_dir)
    if point is None:
        print(f"no finished epoch in {command.run_dir} yet: training starts from the beginning.", flush=True)  # noqa: T201
        return None
    for reason in point.skipped:
        print(f"skipped a checkpoint: {reason}", flush=True)  # noqa: T201
    print(f"continuing {command.run_dir} after epoch {point.epoch} ({point.path.name}).", flush=True)  # noqa: T201
    return point


def _refuse_changed_model(run_dir: Path, config: str) -> None:
    saved = run_dir / CONFIG
    if not saved.is_file():
        return
    before, now = _flat(yaml.safe_load(saved.read_text())), _flat(yaml.safe_load(config))
    kept = ["model.", "seed_everything"]
    if any(key.startswith("model.init_args.scheduler.") for key in now):
        kept += ["trainer.max_epochs", "trainer.max_steps"]  # a schedule over the whole run has its length in its state
    for key in [*before, *now]:
        if key.startswith(tuple(kept)) and before.get(key) != now.get(key):
            raise ResumeError(
                f"{key} was {before.get(key)!r} when this run began and is {now.get(key)!r} now; a resume keeps the "
                "checkpoint's model and optimizer, so leave it as it was, or start a new run with --init_from FILE."
            )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {key: value for name, inner in config.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _ordered(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Overall scores first, then those of single classes, the loss behind its kind."""
    metrics = {name: value for result in results for name, value in result.items()}
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: (name.count("/"), "loss" in name))}


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _announce(cli: TrainingCLI) -> None:
    if not cli.trainer.is_global_zero:
        return
    layers = " + ".join(path.name for path in cli.command.configs)
    print(f"recipe: {cli.command.recipe} ({layers})\nrun directory: {cli.command.run_dir}", flush=True)  # noqa: T201


def _say_how_to_continue(command: Command, cause: str) -> None:
    words = [word for word in command.argv if not word.startswith("--ckpt_path=")]
    if "--ckpt_path" in words:
        position = words.index("--ckpt_path")
        del words[position : position + 2]
    print(f"stopped by {cause}; continue with: {' '.join(words)} --ckpt_path last", file=sys.stderr, flush=True)  # noqa: T201


def _split_note(cli: TrainingCLI) -> str:
    """How the data module split its cases, where it tells; without it a test figure cannot be read."""
    return str(getattr(cli.datamodule, "split_note", ""))


def _print_metrics(cli: TrainingCLI, metrics: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", title=f"{cli.command.recipe}: {cli.command.verb}", title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(_split_note(cli), highlight=False, markup=False)
    report = cli.command.run_dir / REPORT
    if cli.command.verb == "run":
        console.print(f"report: {report}", highlight=False, markup=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Lightning says about itself: hardware lists, advertising tips, worker counts."""
    handlers = [
        handler
        for name in ("lightning", "lightning.pytorch", "lightning.fabric")
        for handler in logging.getLogger(name).handlers
    ]
    for handler in handlers:
        handler.addFilter(_ours_or_warning)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(_ours_or_warning)


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "ics_apps" in record.pathname


_EXPECTED_WARNINGS = (
    # Small data sets sit in memory: a worker process costs more than it brings on a small machine.
    r".*does not have many workers.*",
    r"The number of training batches .* is smaller than the logging interval.*",
    # Lightning 2.6 asks torch's tree specs in a way that torch 2.14 deprecates.
    r".*isinstance\(treespec, LeafSpec\).*",
    # Lightning 2.6 calls jsonargparse in a way that jsonargparse 4.53 deprecates.
    r"(?s).*(By default only one Jsonargparse|deprecated in v4[\d.]+ and will be removed in v5).*",
)
