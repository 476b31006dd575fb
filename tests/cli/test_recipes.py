from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ics_apps.cli import main
from ics_apps.cli.recipes import RecipeError, list_recipes, recipe_files


def test_every_shipped_recipe_has_a_question_a_command_and_a_result() -> None:
    for recipe in list_recipes():
        assert len(recipe.header) >= 3, f"{recipe.name}: the header needs three lines: question, command, result"
        assert recipe.header[0].endswith("?"), f"{recipe.name}: the first header line must be a question"
        assert "ics-apps" in recipe.header[1], f"{recipe.name}: the second header line must be a command"


def test_no_recipe_inherits_by_a_config_key() -> None:
    for recipe in list_recipes():
        assert "config" not in yaml.safe_load(recipe.path.read_text()), (
            f"{recipe.name}: a `config` key merges by whole top-level keys and drops callbacks without a word"
        )


def test_a_name_stands_for_the_base_and_the_arm() -> None:
    assert [path.name for path in recipe_files("segmentation/isbi2012")] == ["base.yaml", "isbi2012.yaml"]
    assert [path.name for path in recipe_files("segmentation/base")] == ["base.yaml"]


def test_a_path_stands_for_itself_and_the_base_beside_it(tmp_path: Path) -> None:
    arm = tmp_path / "arm.yaml"
    arm.write_text("{}")
    assert recipe_files(str(arm)) == [arm]
    (tmp_path / "base.yaml").write_text("{}")
    assert recipe_files(str(arm)) == [tmp_path / "base.yaml", arm]


@pytest.mark.parametrize(
    ("given", "nearest"), [("segmentation/bse", "segmentation/base"), ("isbi2012", "segmentation/isbi2012")]
)
def test_a_misspelt_recipe_is_told_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"there is no recipe or file '{given}'; did you mean '{nearest}'"):
        recipe_files(given)


def test_a_name_cannot_leave_the_recipe_folder() -> None:
    with pytest.raises(RecipeError, match="there is no recipe or file"):
        recipe_files("../mkdocs")


def test_copy_takes_the_base_along_and_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "copy", "segmentation/isbi2012", str(tmp_path / "mine")]) == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["base.yaml", "isbi2012.yaml"]
    assert main(["recipes", "copy", "segmentation/isbi2012", str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_show_prints_base_and_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "segmentation/isbi2012"]) == 0
    text = capsys.readouterr().out
    assert text.index("# --- base.yaml") < text.index("# --- isbi2012.yaml")
