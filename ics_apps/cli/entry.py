"""From a command line to a verb, and from an error to one line and an exit code.

Exit codes: 0 done; 1 a fault of the program, or Ctrl-C; 2 something the user can mend, told in one line; 143 SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from ics_apps import __version__
from ics_apps.nearest import did_you_mean

EXIT_USAGE: Final = 2

HELP: Final = """\
ics-apps: choose, watch and measure normalization in PyTorch Lightning projects.

  ics-apps run RECIPE [--out DIR] [--KEY VALUE ...]   train, test the best checkpoint, write a report
  ics-apps fit|validate|test|predict RECIPE [...]     one of these steps alone
  ics-apps export RUN [--format onnx|torch_export]    the net of a run as a file for other programs
  ics-apps recipes list | show NAME | copy NAME DIR   what is shipped, and a copy to change
  ics-apps norms list | describe NAME                 the normalization registry
  ics-apps report RUN [RUN ...]                       one HTML page of a run, or of several side by side, offline

RECIPE is a shipped name (segmentation/base), a YAML file, or the directory of an earlier run.
Any key of a recipe can be set behind it: ics-apps run segmentation/base --model.norm group --trainer.max_epochs 5
`ics-apps VERB --help` tells more; --version prints the version; --debug anywhere shows tracebacks.
"""


def entry_point() -> None:
    """The console script: run the verb and exit with its code."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    Example:
        >>> main(["--version"]) == 0
        ics-apps ...
        True
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # `ics-apps recipes list | head` closes our output early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug or not _is_for_the_user(error):
            traceback.print_exc()
            return EXIT_USAGE if _is_for_the_user(error) else 1
        print(f"ics-apps: {_one_line(error)}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")  # noqa: T201
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        print(f"ics-apps {__version__}")  # noqa: T201
        return 0
    verbs = _verbs()
    if verb not in verbs:
        print(f"ics-apps: there is no verb {verb!r}{did_you_mean(verb, verbs)}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    return verbs[verb](verb, rest)


def _verbs() -> dict[str, Callable[[str, list[str]], int]]:
    return {
        "run": _train, "fit": _train, "validate": _train, "test": _train, "predict": _train,
        "export": _export, "recipes": _recipes, "norms": _norms, "report": _report,
    }  # fmt: skip


def _train(verb: str, arguments: list[str]) -> int:
    from ics_apps.cli.command import parse_command

    command = parse_command(verb, arguments)
    if command is None:
        return 0
    from ics_apps.cli.training import execute

    return execute(command)


def _export(_verb: str, arguments: list[str]) -> int:
    from ics_apps.cli.export import export_verb

    return export_verb(arguments)


def _recipes(_verb: str, arguments: list[str]) -> int:
    from ics_apps.cli.recipes import recipes_verb

    return recipes_verb(arguments)


def _norms(_verb: str, arguments: list[str]) -> int:
    from ics_apps.cli.norms import norms_verb

    return norms_verb(arguments)


def _report(_verb: str, arguments: list[str]) -> int:
    from ics_apps.cli.report import report_verb

    return report_verb(arguments)


def _is_for_the_user(error: Exception) -> bool:
    """Whether the error tells the user what to mend: our own classes, our argument checks, Lightning's wrong setups."""
    kind = type(error)
    if kind.__module__.startswith("ics_apps.") or kind.__name__ == "MisconfigurationException":
        return True
    return isinstance(error, ValueError | ImportError | OSError) and _raised_by_us(error)


def _raised_by_us(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("ics_apps.")


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n  ".join(lines) if len(lines) > 1 else " ".join(lines)
