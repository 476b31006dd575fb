"""The page of one norm: what it computes, when to use it, axes, promises, options, paper; pure, from entry to lines."""

from __future__ import annotations

import re
import textwrap
from typing import Any, Final

from ics_apps.cli.norms.picture import picture
from ics_apps.cli.norms.table import PROMISES
from ics_apps.norms import NormEntry

_LABEL: Final = 11
_REFERENCE: Final = "Reference:"


def page_lines(entry: NormEntry, width: int) -> list[str]:
    """Everything the registry knows about a norm, fitted to `width` columns; the cost comes behind it."""
    paragraphs = [part.strip() for part in textwrap.dedent(entry.doc).split("\n\n") if part.strip()]
    lines = [f"{entry.name} ({entry.family})", "", *_fitted(entry.summary, width)]
    for paragraph in paragraphs:
        if not paragraph.startswith(_REFERENCE):
            lines += ["", *_fitted(paragraph, width)]
    return [
        *lines, "",
        *(f"  {line}".rstrip() for drawn in picture(entry) for line in _fitted(drawn, width - 2) or [""]), "",
        *_labelled("Promises", _promises(entry), width),
        *_labelled("Options", _options(entry), width),
        *_labelled("Inputs", _inputs(entry), width),
        *_labelled("Use", _use(entry), width),
        *_labelled("Paper", _paper(entry, paragraphs), width),
    ]  # fmt: skip


def cost_lines(text: str, width: int) -> list[str]:
    """The cost as the last lines of the page."""
    return _labelled("Cost", text, width)


def as_yaml(value: Any) -> str:
    """A default as a recipe writes it.

    Example:
        >>> as_yaml(None), as_yaml(True), as_yaml(8), as_yaml(1e-5), as_yaml("l1")
        ('null', 'true', '8', '1.0e-05', 'l1')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    # YAML 1.1 reads 1e-05 as a word: a number with an exponent needs a point.
    return text.replace("e", ".0e", 1) if isinstance(value, float) and "e" in text and "." not in text else text


def _promises(entry: NormEntry) -> str:
    pools = ", ".join(entry.pools) or ("nothing of the input" if entry.acts_on_weight else "nothing")
    named = [(" ".join(promise.header).strip(), promise.holds(entry)) for promise in PROMISES]
    yes = ", ".join(name for name, holds in named if holds)
    no = ", ".join(name for name, holds in named if not holds)
    bias = "a bias before it is redundant" if entry.absorbs_bias else "the layer before it keeps its bias"
    return f"pools over {pools}\nyes: {yes or 'none'}\nno: {no or 'none'}\n{bias}"


def _options(entry: NormEntry) -> str:
    return ", ".join(f"{name}: {as_yaml(default)}" for name, default in entry.options.items()) or "none"


def _inputs(entry: NormEntry) -> str:
    shapes = {0: "(B, C)", 1: "(B, C, S)", 2: "(B, C, H, W)", 3: "(B, C, D, H, W)", "tokens": "(B, L, C)"}
    defined = ", ".join(f"{dim} {shapes[dim]}" for dim in entry.dims)
    return f"dim {defined}" + (f"\nnot the others: {entry.undefined_because}" if entry.undefined_because else "")


def _use(entry: NormEntry) -> str:
    """How to ask for it, in Python and, where recipes build images with it, on the command line."""
    dim = next(dim for dim in (2, "tokens", *entry.dims) if dim in entry.dims)
    python = f'ics_apps.norms.make_norm("{entry.name}", channels, dim={dim!r})'
    if dim != 2 or entry.needs_condition:
        return python
    commands = [f"ics-apps run RECIPE --model.norm {entry.name}"]
    for name, default in list(entry.options.items())[:1]:
        commands.append(f"ics-apps run RECIPE --model.norm '{{name: {entry.name}, {name}: {as_yaml(default)}}}'")
    return "\n".join([python, *commands])


def _paper(entry: NormEntry, paragraphs: list[str]) -> str:
    """The reference of the entry and that of its text, each only if the other does not contain it."""
    given = next((part for part in paragraphs if part.startswith(_REFERENCE)), "")
    detail = " ".join(given.removeprefix(_REFERENCE).split()).rstrip(".")
    if _words(detail) <= _words(entry.reference):
        return entry.reference
    return detail if _words(entry.reference) <= _words(detail) else f"{entry.reference}; {detail}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{2,}", text))


def _labelled(label: str, text: str, width: int) -> list[str]:
    lines = [part for line in text.splitlines() for part in _fitted(line, width - _LABEL)]
    return [f"{label if number == 0 else '':<{_LABEL}}{line}" for number, line in enumerate(lines)]


def _fitted(text: str, width: int) -> list[str]:
    """The lines as they are if they fit, else wrapped."""
    lines = text.splitlines()
    if all(len(line) <= width for line in lines):
        return lines
    return textwrap.wrap(" ".join(text.split()), max(width, 20), break_on_hyphens=False)
