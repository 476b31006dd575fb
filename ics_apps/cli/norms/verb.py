"""The verb `ics-apps norms`: reads its words and prints. The texts are made in `table`, `page`, `picture` and `cost`.

Nothing here imports torch, except that `describe` measures the cost of a norm that was not measured yet.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import Final

from ics_apps.cli.norms.cost import Cost, measure_cost
from ics_apps.cli.norms.page import cost_lines, page_lines
from ics_apps.cli.norms.remembered import recall, remember
from ics_apps.cli.norms.table import table_lines
from ics_apps.nearest import did_you_mean
from ics_apps.norms import NormEntry, NormError, list_norms, norm_entry

PIPED_WIDTH: Final = 120


def norms_verb(arguments: list[str]) -> int:
    """`ics-apps norms [list [PATTERN] [--family F]] | describe NAME [--measure | --no-measure]`."""
    options = _parser().parse_args(arguments or ["list"])
    if options.verb == "list":
        _print(table_lines(_selected(options.pattern, options.family), _width()))
    else:
        entry = norm_entry(options.name)
        _print(page_lines(entry, _width()))
        _print(_cost_of(entry, options.device, options.measure))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ics-apps norms", description="The normalization registry.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | describe")
    lister = verbs.add_parser("list", help="all norms and their promises (also without this word)")
    lister.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, e.g. 'layer*'")
    lister.add_argument("--family", help="one family only, such as batch, sample or weight")
    describe = verbs.add_parser("describe", help="formula, axes, when to use it, options, promises, paper, cost")
    describe.add_argument("name")
    describe.add_argument(
        "--measure", action=argparse.BooleanOptionalAction,
        help="measure the cost against batch norm anew, or not at all; by default once a machine, then remembered",
    )  # fmt: skip
    describe.add_argument("--device", default="cpu", help="where to measure: cpu (default), cuda, mps, ...")
    return parser


def _selected(pattern: str, family: str | None) -> list[NormEntry]:
    names = list_norms(pattern, family)
    if not names:
        among = "" if family is None else f" in the family {family!r}"
        hint = did_you_mean(pattern, list_norms(family=family))
        raise NormError(f"no norm{among} matches {pattern!r}{hint} `ics-apps norms list` shows all")
    return [norm_entry(name) for name in names]


def _cost_of(entry: NormEntry, device: str, measure: bool | None) -> list[str]:
    """The lines on cost: the remembered figure, or a new one if there is none or `measure` asks for it."""
    cost: Cost | str | None = None if measure else recall(entry.name, device)
    if cost is None and measure is not False:
        cost = _measured(entry, device)
    if cost is None:
        return cost_lines("not measured on this machine yet; leave out --no-measure to measure it", _width())
    return cost_lines(cost if isinstance(cost, str) else cost.as_text(), _width())


def _measured(entry: NormEntry, device: str) -> Cost | str:
    _say(f"measuring {entry.name} against batch norm on this machine, some seconds; --no-measure leaves it out ...")
    try:
        cost = measure_cost(entry, device=device)
    except (ValueError, RuntimeError) as error:  # the page above is good without this figure
        return f"could not be measured: {str(error).splitlines()[0]}"
    try:
        remember(cost, device)
    except OSError as error:
        _say(f"the figure is not kept for the next time: {error}")
    return cost


def _width() -> int:
    """Columns of the terminal; a fixed number where the output is piped, so that it is the same everywhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH


def _print(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)  # noqa: T201


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
