"""The recipe's figure on real data, as its card tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ics_apps.cli import main


@pytest.mark.slow
@pytest.mark.realdata
def test_the_recipe_finds_membranes_on_the_six_validation_slices(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "segmentation" / "isbi2012_membrane"
    assert main(["run", "segmentation/isbi2012", "--data.root", str(root), "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["test/dice/membrane"] >= 0.795, f"membrane Dice fell to {metrics['test/dice/membrane']:.4f}"
