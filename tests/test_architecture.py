"""The layering law: the block in `ics_apps/README.md`, held against every import in the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ics_apps"
# Third-party packages that belong to few folders: anywhere else they would make a light import heavy.
CONFINED = {
    "lightning": {"callbacks", "tasks", "runs", "cli"},
    "matplotlib": {"reports"},
    "timm": {"nets"},
    "transformers": {"nets", "tasks"},
    "scanpy": {"tasks"},
    "anndata": {"tasks"},
    "jsonargparse": {"cli"},
}
FORBIDDEN_NAMES = ("utils", "util", "helpers", "common", "manager", "misc")
LONGEST_FILE, LONGEST_CLASS = 400, 250
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def read_law() -> dict[str, set[str]]:
    block = re.search(r"```layers\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    assert block, "ics_apps/README.md has lost its ```layers block"
    rows = [line.split(":") for line in block[1].strip().splitlines()]
    return {name: {word.strip() for word in allowed.split(",") if word.strip()} for name, allowed in rows}


LAW = read_law()


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: write the absolute name"
            found |= {f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else str(node.module)
                      for alias in node.names}  # fmt: skip
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def layer_of(module: str) -> str:
    """The longest name in the law that the module lies under; its first folder where the law has none."""
    parts = module.removeprefix("ics_apps.").split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in LAW:
            return name
    return parts[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    own = layer_of(module_name(path))
    if own in ("ics_apps", "__init__", "__main__"):
        return
    for module in imported_modules(path):
        if module.startswith("ics_apps."):
            other = layer_of(module)
            allowed = LAW[own] | {own}
            assert {other, other.split(".")[0]} & allowed, (
                f"{module_name(path)} ({own}) may not import {module} ({other})"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    folder = path.relative_to(PACKAGE).parts[0]
    for module in imported_modules(path):
        homes = CONFINED.get(module.split(".")[0])
        assert homes is None or folder in homes, (
            f"{module_name(path)} imports {module}, which belongs to {sorted(homes)}"
        )


def test_the_law_names_every_folder_and_module_and_nothing_else() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    named = {name.split(".")[0] for name in LAW}
    assert folders | modules == named


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_classes_are_small_and_named_by_a_noun(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE, f"{path.name} has more than {LONGEST_FILE} lines"
    for part in path.relative_to(PACKAGE).with_suffix("").parts:
        assert part.strip("_") not in FORBIDDEN_NAMES, f"{path} is named after nothing in particular"
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.end_lineno:
            length = node.end_lineno - node.lineno
            assert length <= LONGEST_CLASS, f"{path.name}: class {node.name} has {length} lines"


def test_assert_is_not_used_to_check_arguments() -> None:
    for path in FILES:
        asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
        assert not asserts, f"{path}: assert at lines {asserts} vanishes under `python -O`; raise an error"
