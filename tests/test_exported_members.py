"""What a folder exports is listed, sorted and really there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ics_apps"
FOLDERS = [
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in sorted(PACKAGE.rglob("__init__.py"))
    if "__all__" in path.read_text()
]


@pytest.mark.parametrize("name", FOLDERS)
def test_all_is_sorted_and_complete(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__), f"{name}.__all__ is not sorted"
    for member in module.__all__:
        assert getattr(module, member) is not None
