"""`ics-apps report`: one run gives its page, several give a comparison, and what is wrong is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ics_apps.cli.entry import main
from ics_apps.runs import layout


@pytest.fixture
def runs(tmp_path):
    made = []
    for name in ("a", "b"):
        run = tmp_path / name
        run.mkdir()
        (run / layout.CONFIG).write_text(f"norm: {name}\n", encoding="utf-8")
        (run / layout.METRICS_TABLE).write_text("step,epoch,val/dice\n1,0,0.5\n2,0,0.6\n", encoding="utf-8")
        made.append(run)
    return made


def test_one_run_gets_its_page_in_its_directory(runs, capsys):
    assert main(["report", str(runs[0])]) == 0
    assert Path(capsys.readouterr().out.strip()) == runs[0] / "report.html"
    assert (runs[0] / "report.html").is_file()


def test_several_runs_get_a_comparison_in_the_current_folder(runs, capsys, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert "Comparison of 2 runs" in (here / "comparison.html").read_text(encoding="utf-8")


def test_out_names_the_file_of_a_comparison(runs, capsys, tmp_path):
    out = tmp_path / "new" / "c.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.is_file()


def test_run_given_twice_is_told_in_one_line(runs, capsys, tmp_path):
    assert main(["report", str(runs[0]), str(runs[0]), "--out", str(tmp_path / "c.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ics-apps: ")
    assert "is given twice" in error
    assert error.count("\n") == 1


def test_missing_run_is_told_in_one_line(runs, capsys, tmp_path):
    assert main(["report", str(runs[0]), str(tmp_path / "bb")]) == 2
    assert "bb does not exist" in capsys.readouterr().err
