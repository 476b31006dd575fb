"""What the page on the monitor tells people to type is true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from ics_apps.callbacks import ActivationMonitor
from ics_apps.cli.report import report_verb

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "monitor.md"
PAGE = HOW_TO.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = blocks("python")
    assert len(python) > 5
    exec(compile("\n".join(python), HOW_TO.name, "exec"), {"__name__": "how_to"})  # noqa: S102 - our own page
    commands = [shlex.split(line) for line in re.findall(r"^ics-apps .*$", PAGE, re.MULTILINE)]
    assert len(commands) == 2
    for command in commands:
        assert command[:2] == ["ics-apps", "report"]
        assert report_verb(command[2:]) == 0
    assert "layer#fake" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_the_yaml_is_understood() -> None:
    (block,) = blocks("yaml")
    parser = ArgumentParser()
    parser.add_argument("--callbacks", type=list[Callback])
    config = parser.parse_object({"callbacks": yaml.safe_load(block)["trainer"]["callbacks"]})
    (monitor,) = parser.instantiate(config).callbacks
    assert isinstance(monitor, ActivationMonitor)


def test_its_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert targets
    assert [target for target in targets if not (HOW_TO.parent / target).exists()] == []
