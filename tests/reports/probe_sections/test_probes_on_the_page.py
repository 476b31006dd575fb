"""The page of a run that was probed: a section for each table there is, and one short one where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter

import pytest

from ics_apps.reports import write_comparison, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<img src=x onerror=document.title='taken'>"
SECTIONS = ["ics", "input_drift", "landscape", "hessian", "conditioning", "leakage", "composition", "scale_invariance",
            "gradient_flow"]  # fmt: skip


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


def sections(page):
    return re.findall(r'<section id="(\w+)">', page)


@pytest.fixture(scope="module")
def page(tmp_path_factory, save_probes, tables):
    """The page of a run with every table, for tests that only read it."""
    run = tmp_path_factory.mktemp("probed")
    save_probes(run, tables)
    return page_of(run)


def test_every_table_has_its_section_between_the_layers_and_the_cases(page):
    found = sections(page)
    start = found.index("ics")
    assert found[start : start + len(SECTIONS)] == SECTIONS
    assert found[start - 1] == "drift"
    assert found[start + len(SECTIONS)] == "cases"


def test_ids_are_unique_beside_those_of_the_monitor(page, finished_page):
    ids = Counter(re.findall(r'\sid="([^"]+)"', page))
    assert [name for name, times in ids.items() if times > 1] == []
    beside = set(re.findall(r'<(?:svg|image|clipPath|path)[^>]*\sid="([^"]+)"', finished_page))
    assert ids.keys() & beside == set()


def test_every_figure_has_a_text_for_those_who_cannot_see_it(page):
    figures = re.findall(r"<svg [^>]*>", page)
    assert len(figures) == 18
    assert all(re.search(r'aria-label="[^"]+"', figure) for figure in figures)


def test_only_tables_that_exist_have_a_section(tmp_path, save_probes, tables):
    save_probes(tmp_path, {name: tables[name] for name in ("landscape", "spectral_density")})
    found = sections(page_of(tmp_path))
    assert [name for name in found if name in (*SECTIONS, "probes")] == ["landscape", "hessian"]


def test_a_run_without_probes_has_one_short_section_that_says_how(make_run):
    page = page_of(make_run(every=10_000, levels=1, cases=1))
    assert [name for name in sections(page) if name in (*SECTIONS, "probes")] == ["probes"]
    assert "This run was not probed: add _watch/probes" in page


def test_probes_that_measured_nothing_yet_are_told_apart_from_none(tmp_path, save_probes):
    save_probes(tmp_path, {"ics": [], "leakage": []})
    page = page_of(tmp_path)
    assert "have measured nothing yet" in page
    assert "was not probed" not in page


def test_damaged_tables_cost_a_sentence_and_no_page(tmp_path, save_probes, tables):
    for file in save_probes(tmp_path, tables).iterdir():
        file.write_bytes(file.read_bytes()[:-7] + b"\xff\x00,,\n")
    page = page_of(tmp_path)
    assert "could not be read and are left out." in page
    assert set(SECTIONS) <= set(sections(page))


def test_a_comparison_of_probed_runs_is_written_as_before(make_run, save_probes, tables, tmp_path):
    runs = [make_run(name, every=10_000, levels=1, cases=1) for name in ("a", "b")]
    for run in runs:
        save_probes(run, tables)
    assert write_comparison(runs, tmp_path / "comparison.html").is_file()


@pytest.mark.slow
def test_sixty_layers_and_forty_steps_make_a_page_that_can_be_sent(tmp_path, save_probes, probe_rows_of):
    names = [f"model.encoder.blocks.{block}.{kind}" for block in range(30) for kind in ("conv", "norm")]
    save_probes(tmp_path, probe_rows_of(names, range(0, 4000, 100)))
    assert write_report(tmp_path).stat().st_size < 2e6


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on PATH")
def test_browser_shows_the_sections_and_runs_no_script_from_a_name(tmp_path, save_probes, tables):
    for file in save_probes(tmp_path / "run", tables).iterdir():
        file.write_text(file.read_text(encoding="utf-8").replace("net.encoder.0", EVIL), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
               "--enable-logging=stderr", "--disable-background-networking",
               f"--user-data-dir={tmp_path / 'profile'}", write_report(tmp_path / "run").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert set(SECTIONS) <= set(sections(done.stdout))
    assert "<title>run" in done.stdout
    assert "CONSOLE" not in done.stderr
