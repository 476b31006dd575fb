"""The recipe parser's errors in one sentence, and the list of packages a recipe may name.

jsonargparse reports every attempt it made; here the innermost cause is picked and the nearest right name added.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from ics_apps.nearest import did_you_mean

ALLOWED_IMPORTS: Final = (
    "ics_apps", "lightning", "torch.optim", "torch.nn", "torchmetrics", "timm", "transformers"
)  # fmt: skip


# Around a sentence of an inner parser, so that it can be found in the message an outer one makes of it.
_OPEN, _CLOSE = "\u27ea", "\u27eb"
_MARKED: Final = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
_LONGEST: Final = 400
_MOST_KEYS: Final = 20


class UsageError(ValueError):
    """A key, value, class or file of a recipe or flag that is wrong."""


def allow_imports(packages: Iterable[str] = ()) -> None:
    """Let recipes name classes of our own, Lightning's, torch's layers and optimizers, and of `packages` only.

    A class named in a recipe is imported and called, and importing runs code: without this list a recipe could run
    anything. The present folder becomes importable when a package of the user's own is allowed.
    """
    extra = list(packages)
    if extra and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED_IMPORTS, *extra])


@contextmanager
def plain_sentences() -> Iterator[None]:
    """Turn what jsonargparse raises inside into a `UsageError` of one sentence; other errors pass."""
    try:
        yield
    except (ValueError, TypeError) as error:
        message = str(error)
        if _OPEN in message or "Parser key" in message or "union subtypes" in message.lower():
            raise UsageError(one_sentence(message)) from error
        raise


class OneLineParser(LightningArgumentParser):
    """Lightning's parser that refuses abbreviations and raises `UsageError` with one sentence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the one-sentence form of the message, marked so that an outer parser finds it in its own message."""
        raise UsageError(f"{_OPEN}{one_sentence(message, self.known_keys())}{_CLOSE}") from ex

    def known_keys(self) -> list[str]:
        """All keys that can be set by a flag, without their dashes."""
        return sorted(option.lstrip("-") for option in self._option_string_actions if option.startswith("--"))


def one_sentence(message: str, known_keys: Iterable[str] = ()) -> str:
    """The innermost cause in a parser message, with the nearest right name.

    Example:
        >>> one_sentence("unrecognized arguments: --trainer.max_epoch 3", ["trainer.max_epochs"])
        "there is no key trainer.max_epoch; did you mean 'trainer.max_epochs'?"
    """
    inner = _MARKED.findall(message)
    if inner:
        return str(inner[-1])
    for pattern, explain in _EXPLANATIONS:
        found = list(re.finditer(pattern, message))
        if found:
            return explain(found[-1], message, list(known_keys))
    return _causes(message) or " ".join(message.split())[:_LONGEST]


def _unknown_key(found: re.Match[str], _message: str, known: list[str]) -> str:
    key = found["key"].split("=")[0]
    near = did_you_mean(key, known)
    plain = sorted({name.split(".")[0] for name in known} - {"config", "print_config", "help"})
    shown = f"; there are {', '.join(plain)}." if near == "." and 0 < len(plain) <= _MOST_KEYS else near
    return f"there is no key {key}{shown}"


def _unknown_in_group(found: re.Match[str], _message: str, known: list[str]) -> str:
    key = f"{found['group']}.{found['key']}"
    return f"there is no key {key}{did_you_mean(key, known)}"


def _unknown_option(found: re.Match[str], message: str, known: list[str]) -> str:
    owner = (re.findall(r"class_path='([\w.]+)'", message) or [None])[-1]
    options = _parameters(owner) if owner else [key.split(".")[-1] for key in known]
    option = found["key"].split(".")[-1]
    place = f" of {owner.rsplit('.', 1)[-1]}" if owner else ""
    return f"there is no key {option}{place}{did_you_mean(option, options)}"


def _refused_import(found: re.Match[str], _message: str, _known: list[str]) -> str:
    package = found["path"].split(".")[0]
    return (
        f"a recipe may not name {found['path']}: allowed are {', '.join(ALLOWED_IMPORTS)}. A recipe is a program; "
        f"if you trust it, add --allow {package}."
    )


def _missing_class(found: re.Match[str], message: str, _known: list[str]) -> str:
    path = found["path"]
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ImportError:
        return f"there is no module {module_name} for class_path {path}."
    if module is None:
        return f"class_path {path!r} is no class of ours, Lightning's or torch's; give its full dotted path."
    if hasattr(module, name):
        return f"{path} does not fit here: {_causes(message[found.end() :]) or 'it is of another kind.'}"
    return f"there is no class {path}{did_you_mean(name, [item for item in dir(module) if item[0] != '_'])}"


def _not_among(found: re.Match[str], message: str, _known: list[str]) -> str:
    key = (re.findall(r'Parser key "([^"]+)"', message[: found.start()]) or ["the value"])[-1]
    choices = [choice.strip(" '\"") for choice in found["choices"].split(",")]
    value = found["value"].strip()
    return f"{key} is {value!r}; allowed are {', '.join(choices)}{did_you_mean(value, choices)}"


def _causes(message: str) -> str:
    """What a value was expected to be, or the reasons listed under `Errors:`, in one sentence."""
    types = [name for name in re.findall(r"Expected an? <class '(\w+)'>", message) if name != "NoneType"]
    reasons = [item.strip() for item in re.findall(r"^\s*- (?!Expected an? <class)(.+)$", message, re.MULTILINE)]
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    if not types:
        return ""
    key = (re.findall(r'Parser key "([^"]+)"', message) or ["the value"])[-1]
    value = (re.findall(r"Given value: (.*)", message) or ["?"])[-1]
    return f"{key} is {value!r}; allowed is {' or '.join(dict.fromkeys(types))}."


def _parameters(path: str) -> list[str]:
    module_name, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module_name), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


_EXPLANATIONS: Final = (
    (r"unrecognized arguments: --(?P<key>[^\s]+)", _unknown_key),
    (r"Import(?:ing)? (?:of )?'?(?P<path>[\w.]+)'? (?:is )?not allowed", _refused_import),
    (r"Option '(?P<key>[^']+)' is not accepted", _unknown_option),
    (r"Key '(?P<key>[^']+)' is not expected", _unknown_option),
    (r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'", _unknown_in_group),
    (r"Expected a typing.Literal\[(?P<choices>[^\]]+)\]\. Got value: (?P<value>[^\n]+)", _not_among),
    (r"Problem with given class_path '(?P<path>[^']+)'", _missing_class),
)
