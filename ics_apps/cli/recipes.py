"""Shipped recipes: find one by name, list, show and copy them. No torch, no YAML parsing of values.

A recipe is laid over the `base.yaml` beside it, when there is one: an arm of a study then holds only what differs.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ics_apps
from ics_apps.nearest import did_you_mean

BASE: Final = "base.yaml"
_PACKAGE: Final = Path(ics_apps.__file__).parent


class RecipeError(ValueError):
    """A recipe that does not exist or cannot be copied."""


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe: its name, file, and the question, command and result of its header."""

    name: str
    path: Path
    header: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first header line: the question."""
        return self.header[0] if self.header else ""


def recipes_root() -> Path:
    """The folder of shipped recipes: inside the wheel, or beside the package in a source checkout."""
    shipped = _PACKAGE / "_shipped" / "recipes"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "recipes"


def list_recipes() -> list[Recipe]:
    """All shipped recipes and overlays, sorted by name."""
    root = recipes_root()
    found = []
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root).with_suffix("").as_posix()
        found.append(Recipe(name, path, _header(path)))
    return found


def recipe_files(reference: str) -> list[Path]:
    """The configuration files, in order, that a name or a path stands for.

    Args:
        reference: A shipped name such as `segmentation/base`, or a path of a YAML file.

    Raises:
        RecipeError: There is neither; the message names the nearest shipped recipe.
    """
    path = _existing_file(reference)
    base = path.parent / BASE
    return [base, path] if base.is_file() and path.name != BASE else [path]


def recipes_verb(arguments: list[str]) -> int:
    """`ics-apps recipes list | show NAME | copy NAME DIR`."""
    parser = argparse.ArgumentParser(prog="ics-apps recipes", description=recipes_verb.__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | show | copy")
    verbs.add_parser("list", help="names and questions")
    show = verbs.add_parser("show", help="the text of a recipe, below the base it is laid over")
    show.add_argument("name")
    copy = verbs.add_parser("copy", help="copy a recipe and its base into a folder, to change them")
    copy.add_argument("name")
    copy.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.verb == "list":
        _print_list()
    elif options.verb == "show":
        for path in recipe_files(options.name):
            print(f"# --- {path.name}\n{path.read_text().rstrip()}\n")  # noqa: T201
    else:
        _copy(options.name, options.folder)
    return 0


def _existing_file(reference: str) -> Path:
    shipped = recipes_root() / f"{reference.removesuffix('.yaml')}.yaml"
    if _is_inside(shipped, recipes_root()) and shipped.is_file():
        return shipped
    path = Path(reference)
    if path.is_file():
        return path
    names = [recipe.name for recipe in list_recipes()]
    raise RecipeError(
        f"there is no recipe or file {reference!r}{did_you_mean(reference, names)} See `ics-apps recipes list`."
    )


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _header(path: Path) -> tuple[str, ...]:
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return tuple(lines)


def _print_list() -> None:
    recipes = list_recipes()
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.summary}")  # noqa: T201


def _copy(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = recipe_files(name)
    taken = [folder / path.name for path in files if (folder / path.name).exists()]
    if taken:
        raise RecipeError(f"{taken[0]} exists already; give another folder, or remove it.")
    for path in files:
        shutil.copyfile(path, folder / path.name)
    print(f"copied to {folder}: run it with  ics-apps run {folder / files[-1].name}")  # noqa: T201
