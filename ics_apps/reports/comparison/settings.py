"""Which lines of the runs' configurations differ; secrets stay hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ics_apps.reports.masking import mask_yaml
from ics_apps.reports.parts import Table
from ics_apps.reports.wording import printable, shorten

ABSENT: Final = "\N{EN DASH}"
VALUE_WIDTH: Final = 60
SHOWN: Final = 25


def flat_settings(text: str) -> dict[str, str]:
    r"""Flatten a YAML document to one line a setting.

    Items of a list are named by the last part of their `class_path`, or by their number. Secrets are hidden. A document
    that cannot be parsed has no settings.

    Example:
        >>> flat_settings("a: {b: 1}\nc:\n- class_path: x.Y\n  init_args: {d: 2}\nlist: [1, 2]\n")
        {'a.b': '1', 'c.Y.class_path': 'x.Y', 'c.Y.init_args.d': '2', 'list': '[1, 2]'}
    """
    import yaml

    settings: dict[str, str] = {}
    try:
        root = yaml.compose(mask_yaml(text), Loader=yaml.SafeLoader)
        if root is not None:
            _flatten(root, "", settings, ())
    except (yaml.YAMLError, RecursionError):
        return {}
    return settings


def differing(settings: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Keep the settings that are not the same in all runs, by name, so that parts of one setting stand together."""
    names = sorted({name for one in settings for name in one})
    values = {name: tuple(one.get(name, ABSENT) for one in settings) for name in names}
    return {name: own for name, own in values.items() if len(set(own)) > 1}


def settings_tables(changed: Mapping[str, tuple[str, ...]], labels: Sequence[str]) -> tuple[Table, ...]:
    """Make tables of settings by runs; those beyond the first are folded."""
    header = ("setting", *labels)
    rows = [(printable(name), *(shorten(value, VALUE_WIDTH) for value in own)) for name, own in changed.items()]
    tables = [Table(header, tuple(rows[:SHOWN]))] if rows else []
    if len(rows) > SHOWN:
        tables.append(Table(header, tuple(rows[SHOWN:]), fold=f"{len(rows) - SHOWN} more settings"))
    return tuple(tables)


def _flatten(node: Any, prefix: str, settings: dict[str, str], above: tuple[int, ...]) -> None:
    import yaml

    if id(node) in above:  # an alias of itself
        return
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            _flatten(value, f"{prefix}.{key.value}" if prefix else str(key.value), settings, above)
    elif isinstance(node, yaml.SequenceNode) and any(not isinstance(item, yaml.ScalarNode) for item in node.value):
        for place, item in enumerate(node.value):
            name = f"{prefix}.{_item_name(item) or place}"
            taken = any(key == name or key.startswith(f"{name}.") for key in settings)
            _flatten(item, f"{name}[{place}]" if taken else name, settings, above)
    elif isinstance(node, yaml.SequenceNode):
        settings[prefix] = f"[{', '.join(str(item.value) for item in node.value)}]"
    else:
        settings[prefix] = str(node.value) if isinstance(node, yaml.ScalarNode) else "{}"


def _item_name(item: Any) -> str:
    import yaml

    if not isinstance(item, yaml.MappingNode):
        return ""
    classes = [value.value for key, value in item.value if key.value == "class_path"]
    return str(classes[0]).rpartition(".")[2] if classes else ""
