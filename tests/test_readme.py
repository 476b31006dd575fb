"""What the README tells people to type is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from ics_apps import __version__
from ics_apps.cli.command import parse_command
from ics_apps.cli.recipes import list_recipes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip() for line in README.splitlines() if re.match(r"^(\.venv/bin/)?ics-apps (run|fit|test)", line.strip())
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_training_command_of_the_readme_is_understood(line: str, monkeypatch: pytest.MonkeyPatch,
                                                            tmp_path: Path) -> None:  # fmt: skip
    import shlex

    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    assert parse_command(words[0], words[1:]) is not None


def test_the_python_example_runs() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    exec(compile(code[1], "README.md", "exec"), {})  # noqa: S102 - our own README


@pytest.mark.parametrize("page", ["README.md", "ics_apps/README.md", "recipes/README.md", "data/README.md",
                                  "ics_apps/tasks/segmentation/README.md"])  # fmt: skip
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}, which does not exist"


def test_the_readme_stays_one_screen() -> None:
    assert len(README.splitlines()) <= 70


def test_the_gallery_names_every_recipe() -> None:
    gallery = (ROOT / "recipes/README.md").read_text()
    for recipe in list_recipes():
        assert f"`{recipe.name}`" in gallery, f"recipes/README.md does not name {recipe.name}"


def test_versions_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_every_dependency_has_a_floor_and_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name in tomllib.loads(text)["project"]["dependencies"]:
        line = next(line for line in text.splitlines() if f'"{name}"' in line)
        assert ">=" in name, f"{name} has no floor"
        assert "#" in line, f"{name} has no reason beside it"


def test_constraints_hold_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.\-+!]+", line), line


def test_compromised_and_leaky_releases_of_lightning_are_refused() -> None:
    """2.6.2 and 2.6.3 stole credentials at import; releases before 2.6.6 run code from a checkpoint."""
    from packaging.requirements import Requirement

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lightning = next(r for r in map(Requirement, dependencies) if r.name == "lightning")
    for version in ("2.6.2", "2.6.3", "2.6.5"):
        assert not lightning.specifier.contains(version), f"lightning {version} would be accepted"
    assert lightning.specifier.contains("2.6.6")
