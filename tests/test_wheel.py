"""The wheel brings the recipes, the samples and the page template, and works away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_it_holds_what_the_command_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "ics_apps/_shipped/recipes/segmentation/base.yaml",
        "ics_apps/_shipped/samples/segmentation/images/phantom_00.png",
        "ics_apps/reports/page.html.j2",
        "ics_apps/py.typed",
    ):
        assert needed in names, f"{needed} is not in the wheel"


def test_recipes_are_found_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import ics_apps; from ics_apps.cli import main\n"
        "assert ics_apps.__file__.startswith(sys.argv[1]), ics_apps.__file__\n"
        "sys.exit(main(['recipes', 'show', 'segmentation/isbi2012']))"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ImageMaskFolderData" in done.stdout
