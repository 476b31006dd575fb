from __future__ import annotations

import subprocess
import sys
import time

import pytest

from ics_apps.cli import main

HEAVY = ("torch", "lightning", "pandas", "matplotlib", "numpy", "jsonargparse", "transformers", "timm", "scanpy")
LIGHT_COMMANDS = (
    ["--help"],
    ["--version"],
    ["recipes", "list"],
    ["norms", "list"],
    ["norms", "describe", "group", "--no-measure"],
    ["run", "--help"],
    ["report", "--help"],
)


@pytest.mark.parametrize("arguments", LIGHT_COMMANDS, ids=" ".join)
def test_lookups_answer_without_importing_anything_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ics_apps.cli import main\n"
        f"try:\n    code = main({arguments!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert code in (0, None), code\nassert not heavy, heavy\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 5, "a look-up took seconds: something heavy was imported"


def test_a_misspelt_verb_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipies"]) == 2
    assert capsys.readouterr().err == "ics-apps: there is no verb 'recipies'; did you mean 'recipes'?\n"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for verb in ("run", "fit", "validate", "test", "predict", "recipes", "norms", "report"):
        assert verb in text


def test_debug_shows_the_traceback_of_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norms", "describe", "grup", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_norms_list_shows_promises_and_describe_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norms", "list", "b*"]) == 0
    table = capsys.readouterr().out
    assert "batch_frozen" in table
    assert "group" not in table.split("\n", 1)[1].split("batch_noisy")[0].replace("groups", "")
    assert main(["norms", "describe", "group", "--no-measure"]) == 0
    described = capsys.readouterr().out
    assert "num_groups" in described
    assert "1803.08494" in described


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ics_apps", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ics-apps ")
