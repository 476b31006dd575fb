"""What a training command line asks for, read without torch: verb, recipe, run directory, checkpoint, overrides.

Flags that belong to a run as a whole are taken here; every other `--key value` goes to the recipe parser.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ics_apps.cli.recipes import recipe_files
from ics_apps.runs.directory import best_checkpoint, fresh_run_dir, newest_run_dir
from ics_apps.runs.layout import CONFIG

TRAINING_VERBS: Final = ("run", "fit")
RUN_DIR_OF_RANK_ZERO: Final = "ICS_APPS_RUN_DIR"

_DESCRIPTIONS: Final = {
    "run": "Train, test the best checkpoint, and write metrics.json and report.html into one run directory.",
    "fit": "Train only.",
    "validate": "Evaluate a checkpoint on the validation cases.",
    "test": "Evaluate a checkpoint on the test cases.",
    "predict": "Write predictions of a checkpoint for inputs without truth.",
    "export": "Write the net of a checkpoint as a file for other programs.",
}


class CommandError(ValueError):
    """A command line that asks for something impossible."""


@dataclass(frozen=True)
class Command:
    """A training command, ready to execute.

    Attributes:
        verb: `run`, `fit`, `validate`, `test` or `predict`.
        recipe: The reference as typed, for messages and the run record.
        configs: Configuration files in the order in which they are merged.
        run_dir: Where the run writes (an existing run for `validate`, `test`, `predict` and resumes).
        resume: Continue training in `run_dir`.
        checkpoint: File to continue from or to evaluate; None with `resume`: the newest readable one.
        init_from: File or folder whose weights a new run starts from.
        onnx: ONNX file that predicts in place of a checkpoint.
        allow: The user's own packages that a recipe may name.
        overrides: `--key value` pairs for the recipe parser, as typed.
        argv: The whole command as typed.
    """

    verb: str
    recipe: str
    configs: tuple[Path, ...]
    run_dir: Path
    resume: bool
    checkpoint: Path | None
    init_from: Path | None
    onnx: Path | None
    allow: tuple[str, ...]
    overrides: tuple[str, ...]
    argv: tuple[str, ...]


def parse_command(verb: str, arguments: list[str]) -> Command | None:
    """Read the command line of a training verb; None when only help was asked for.

    Raises:
        CommandError: No recipe, an unknown checkpoint word, or flags that exclude each other.
        RecipeError: The recipe does not exist.
        RunDirectoryError: The run directory cannot be used as asked.
    """
    recipes, flags = _split_positionals(arguments)
    parser = _parser(verb)
    if not recipes and ({"-h", "--help"} & set(flags) or not flags):
        parser.print_help()
        return None
    options, overrides = parser.parse_known_args(flags)
    if not recipes:
        raise CommandError(f"`ics-apps {verb}` needs a recipe first, e.g. `ics-apps {verb} segmentation/base`.")
    return _resolve(verb, recipes, options, overrides, ("ics-apps", verb, *arguments))


def _resolve(
    verb: str, recipes: list[str], options: argparse.Namespace, overrides: list[str], argv: tuple[str, ...]
) -> Command:
    if options.onnx and verb != "predict":
        raise CommandError(f"--onnx goes with `ics-apps predict`; `{verb}` takes a checkpoint.")
    earlier_run = Path(recipes[0]) if (Path(recipes[0]) / CONFIG).is_file() else None
    files = [earlier_run / CONFIG] if earlier_run else recipe_files(recipes[0])
    for overlay in recipes[1:]:
        files += [path for path in recipe_files(overlay) if path not in files]
    out = options.out or earlier_run
    name = _run_name(recipes)
    if verb in TRAINING_VERBS:
        run_dir, resume, checkpoint = _training_directory(name, options, out, earlier_run)
    elif options.onnx:
        run_dir, resume, checkpoint = _directory_of_onnx(name, options, out), False, None
    else:
        run_dir, checkpoint = _evaluated_run(name, options.ckpt_path or "best", out)
        resume = False
    if options.init_from and (resume or verb not in TRAINING_VERBS):
        raise CommandError("--init_from starts a new training run; it cannot go with --ckpt_path or an evaluation.")
    return Command(
        verb=verb, recipe=recipes[0], configs=tuple(files), run_dir=run_dir, resume=resume, checkpoint=checkpoint,
        init_from=options.init_from, onnx=options.onnx, allow=tuple(options.allow),
        overrides=_named_norms(overrides), argv=argv,
    )  # fmt: skip


def _training_directory(
    name: str, options: argparse.Namespace, out: Path | None, earlier_run: Path | None
) -> tuple[Path, bool, Path | None]:
    word = options.ckpt_path
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and RUN_DIR_OF_RANK_ZERO in os.environ:
        # Further processes of one run are given its directory: by now it may hold what rank zero has written.
        return Path(os.environ[RUN_DIR_OF_RANK_ZERO]), word is not None, None
    if word is None:
        # A new run with the configuration of an earlier one gets a directory of its own.
        return fresh_run_dir(name, options.out if earlier_run else out), False, None
    existing = newest_run_dir(name, out)
    if word == "last":
        return existing or fresh_run_dir(name, out), True, None
    checkpoint = _checkpoint_path(word, existing)
    if existing is None or existing.resolve() not in checkpoint.resolve().parents:
        raise CommandError(
            f"--ckpt_path continues a run in its own directory, and {checkpoint} is not in {existing or 'any run'}; "
            "use --init_from to start a new run from its weights."
        )
    return existing, True, checkpoint


def _evaluated_run(name: str, word: str, out: Path | None) -> tuple[Path, Path]:
    existing = newest_run_dir(name, out)
    if word in ("best", "last") and existing is None:
        raise CommandError(f"there is no run of {name!r} to evaluate yet: train it, or give --ckpt_path FILE.")
    checkpoint = _checkpoint_path(word, existing)
    return existing or out or checkpoint.parent.parent, checkpoint


def _directory_of_onnx(name: str, options: argparse.Namespace, out: Path | None) -> Path:
    if options.ckpt_path:
        raise CommandError(f"--onnx {options.onnx} stands for a checkpoint; leave out --ckpt_path {options.ckpt_path}.")
    run_dir = newest_run_dir(name, out) or out
    if run_dir is None:
        raise CommandError(f"there is no run of {name!r} yet, so the masks need a folder to go to: --out DIR.")
    return run_dir


def _checkpoint_path(word: str, run_dir: Path | None) -> Path:
    if re.match(r"^[a-z][a-z0-9+.-]+://", word):
        raise CommandError(f"--ckpt_path is {word!r}; only local files are read: download it and check its hash first.")
    if word == "best" and run_dir:
        return best_checkpoint(run_dir)
    if word == "last" and run_dir:
        from ics_apps.runs.checkpoints import newest_readable

        point = newest_readable(run_dir)
        if point is None:
            raise CommandError(f"{run_dir} has no finished epoch yet, so there is nothing to evaluate.")
        return point.path
    path = Path(word)
    if not path.is_file():
        raise CommandError(f"--ckpt_path is {word!r}; allowed are 'last', 'best' or an existing file.")
    return path


def _run_name(recipes: list[str]) -> str:
    first = Path(recipes[0])
    if (first / CONFIG).is_file():
        first = first.parent if first.name.isdigit() else first
        parts = first.parts[1:] if first.parts[:1] == ("runs",) else first.parts[-1:]
    elif first.suffix == ".yaml" or first.is_absolute() or first.is_file():
        parts = (first.stem,)
    else:
        parts = first.parts
    overlays = [Path(overlay).stem for overlay in recipes[1:]]
    name = "-".join(["/".join(parts), *overlays])
    return re.sub(r"[^a-z0-9_./-]", "-", name.lower())


def _named_norms(overrides: list[str]) -> tuple[str, ...]:
    """Let options follow a norm's name: `--model.norm group --model.norm.num_groups 4`.

    The parser can set an option only inside a dict, so a plain name with options behind it becomes `{"name": ...}`.
    """
    words = list(overrides)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if not (flag.startswith("--") and flag.endswith("norm")):
            continue
        behind = position + (1 if equals else 2)
        name = value if equals else words[position + 1] if position + 1 < len(words) else ""
        if name[:1] not in ("{", "-", "") and any(later.startswith(f"{flag}.") for later in words[behind:]):
            as_dict = json.dumps({"name": name})
            words[position:behind] = [f"{flag}={as_dict}"] if equals else [flag, as_dict]
    return tuple(words)


def _split_positionals(arguments: list[str]) -> tuple[list[str], list[str]]:
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            return arguments[:position], arguments[position:]
    return arguments, []


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"ics-apps {verb}",
        usage=f"ics-apps {verb} RECIPE [OVERLAY ...] [flags] [--KEY VALUE ...]",
        description=_DESCRIPTIONS[verb],
        epilog=(
            "RECIPE: a shipped name (see `ics-apps recipes list`), a YAML file, or the directory of an earlier run. "
            "OVERLAY: further recipes or files, merged over it from left to right. "
            "KEY: any key of the recipe, e.g. --model.norm group --data.root DIR --trainer.max_epochs 5; "
            "`--print_config` behind a recipe prints all keys with their values."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory; default: runs/RECIPE/NUMBER")
    parser.add_argument(
        "--ckpt_path", metavar="WORD|FILE",
        help="fit, run: `last` continues the newest run; others: `best` (default), `last` or a file",
    )  # fmt: skip
    parser.add_argument(
        "--init_from", type=Path, metavar="FILE|DIR",
        help="fit, run: start from the weights of a checkpoint, state dict, run or MONAI bundle",
    )  # fmt: skip
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="predict: use this export in place of a checkpoint")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE",
        help="let the recipe name classes of your own package; a recipe is a program, so read it first",
    )  # fmt: skip
    return parser
