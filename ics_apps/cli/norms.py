"""`ics-apps norms`: the registry's entries as a table, and one entry in full. No torch is imported."""

from __future__ import annotations

import argparse
import textwrap

from ics_apps.norms import NormEntry, list_norms, norm_entry


def norms_verb(arguments: list[str]) -> int:
    """`ics-apps norms list [PATTERN] | describe NAME`."""
    parser = argparse.ArgumentParser(prog="ics-apps norms", description=norms_verb.__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | describe")
    lister = verbs.add_parser("list", help="all norms and their promises")
    lister.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, e.g. 'layer*'")
    describe = verbs.add_parser("describe", help="formula, options, promises and paper of one norm")
    describe.add_argument("name")
    options = parser.parse_args(arguments)
    if options.verb == "list":
        _print_table([norm_entry(name) for name in list_norms(options.pattern)])
    else:
        _print_entry(norm_entry(options.name))
    return 0


def _print_table(entries: list[NormEntry]) -> None:
    header = ("norm", "family", "pools over", "mixes samples", "state", "summary")
    rows = [header, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]))  # noqa: T201


def _row(entry: NormEntry) -> tuple[str, ...]:
    mixes = "yes" if entry.mixes_samples else "no"
    return (
        entry.name, entry.family, ",".join(entry.pools) or "-", mixes, "yes" if entry.stateful else "no", entry.summary
    )  # fmt: skip


def _print_entry(entry: NormEntry) -> None:
    print(f"{entry.name} ({entry.family})\n\n{entry.summary}\n")  # noqa: T201
    if entry.doc:
        print(textwrap.dedent(entry.doc).strip() + "\n")  # noqa: T201
    print(f"pools over     {', '.join(entry.pools) or 'nothing'}  (N samples, C channels, S space)")  # noqa: T201
    print(f"mixes samples  {'yes' if entry.mixes_samples else 'no'}")  # noqa: T201
    print(f"state          {'running statistics' if entry.stateful else 'none'}")  # noqa: T201
    print(f"scale invariant {'yes' if entry.scale_invariant else 'no'}")  # noqa: T201
    print(f"dims           {', '.join(str(dim) for dim in entry.dims)}")  # noqa: T201
    options = ", ".join(f"{name}={default!r}" for name, default in entry.options.items())
    print(f"options        {options or 'none'}")  # noqa: T201
    print(f"reference      {entry.reference}")  # noqa: T201
