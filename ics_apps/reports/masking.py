"""Hides secrets in texts that end on a page: values whose key names a token, key, password or secret.

Values are replaced, keys stay, so that a reader sees that one was set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

HIDDEN: Final = "***"

_SENSITIVE: Final = re.compile(r"token|key|password|secret", re.IGNORECASE)
_FLAG: Final = re.compile(r"^-{1,2}[^=]*$")
_INLINE: Final = re.compile(
    r"((?:token|key|password|secret)[\w.\-]*[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,}]+)", re.IGNORECASE
)
_URL_LOGIN: Final = re.compile(r"(\w+://)[^/\s@]+@")


def mask_yaml(text: str) -> str:
    r"""Hide the values of sensitive keys in a YAML document, at any depth.

    The document's nodes are edited, nothing is constructed, so unknown tags and aliases are kept and run nothing.

    Args:
        text: A YAML document. One that cannot be parsed is masked line by line, hiding more rather than less.

    Returns:
        The document with `***` for each hidden value.

    Example:
        >>> print(mask_yaml("logger:\n  api_key: abc\n  name: run\n"), end="")
        logger:
          api_key: '***'
          name: run
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return text
        _mask_node(root, set())
        masked: str = yaml.serialize(root, Dumper=yaml.SafeDumper, width=10_000, allow_unicode=True)
    except (yaml.YAMLError, RecursionError):
        return _mask_lines(text)
    return masked


def mask_command(arguments: Sequence[str]) -> list[str]:
    """Hide the values of sensitive flags, given as `--flag value` or `--flag=value`.

    Example:
        >>> mask_command(["run", "--logger.api_key", "abc", "--seed=1", "--token=x"])
        ['run', '--logger.api_key', '***', '--seed=1', '--token=***']
    """
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
            hide_next = False
            continue
        flag, equals, _ = argument.partition("=")
        sensitive = flag.startswith("-") and _SENSITIVE.search(flag) is not None
        hide_next = sensitive and not equals and _FLAG.match(argument) is not None
        shown.append(f"{flag}={HIDDEN}" if sensitive and equals else _mask_free_text(argument))
    return shown


def _mask_node(node: Any, seen: set[int]) -> None:
    import yaml

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for position, (key, value) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and _SENSITIVE.search(str(key.value)):
                node.value[position] = (key, yaml.ScalarNode("tag:yaml.org,2002:str", HIDDEN))
            else:
                _mask_node(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _mask_node(item, seen)
    else:
        node.value = _mask_free_text(str(node.value))


def _mask_lines(text: str) -> str:
    """Hide what follows a sensitive word on its line, and every deeper line under it."""
    shown: list[str] = []
    hidden_depth: int | None = None
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if hidden_depth is not None and (depth > hidden_depth or not line.strip()):
            continue
        found = _SENSITIVE.search(line)
        hidden_depth = depth if found else None
        shown.append(f"{line[: found.end()]} {HIDDEN}" if found else line)
    return _URL_LOGIN.sub(rf"\1{HIDDEN}@", "\n".join(shown))


def _mask_free_text(text: str) -> str:
    return _URL_LOGIN.sub(rf"\1{HIDDEN}@", _INLINE.sub(rf"\1{HIDDEN}", text))
