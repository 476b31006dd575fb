"""The page as a whole: complete, self-contained, escaped, written in one move, and never stopped by a run's state."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ics_apps.reports import ReportError, write_report
from ics_apps.runs import layout

EVIL = "<img src=x onerror=alert(1)>"
LAYERS = ["drift", "distributions", "units", "rms", "gradients", "parameters", "streams"]


class Tags(HTMLParser):
    """Collects the tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def floats(row: dict[str, Any]) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, float)]


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_finished_run_gives_every_section_in_reading_order(finished_page):
    page = finished_page
    ids = re.findall(r'<section id="(\w+)">', page)
    assert ids == ["curves", "alarms", *LAYERS, "probes", "cases", "config", "origin"]
    assert page.index('class="tiles"') < page.index('class="reading"') < page.index('id="curves"')
    assert page.count('class="missing"') == 1  # of the probes, which are not switched on


def test_report_goes_into_the_run_directory_unless_told(make_run, tmp_path):
    run = make_run()
    assert write_report(run) == run / "report.html"
    assert write_report(run, tmp_path / "new" / "a.html").is_file()


def test_page_refers_to_nothing_outside_itself(finished_page):
    assert not re.search(r"https?://|<script|<link|<iframe|@import", finished_page)
    for name, value in Tags(finished_page).attributes:
        if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert value.startswith(("data:image/png;base64,", "#")), (name, value[:80])
    assert re.findall(r"url\((?!#|data:)", finished_page) == []


def test_content_security_policy_allows_only_embedded_images_and_styles(finished_page):
    policies = [value for name, value in Tags(finished_page).attributes if name == "content" and "-src" in value]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_ids_are_unique_and_every_local_reference_is_met(finished_page):
    ids = Counter(re.findall(r'\sid="([^"]+)"', finished_page))
    assert [name for name, times in ids.items() if times > 1] == []
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', finished_page)) <= set(ids)


def test_every_figure_and_picture_has_a_text_for_those_who_cannot_see_it(finished_page):
    figures, pictures = re.findall(r"<svg [^>]*>", finished_page), re.findall(r"<img [^>]*>", finished_page)
    assert (len(figures), len(pictures)) == (16, 12)
    assert all(re.search(r'aria-label="[^"]+"', figure) for figure in figures)
    assert all(re.search(r'alt="[^"]+"', picture) for picture in pictures)


def test_names_with_markup_stay_text_everywhere(make_run):
    layers = [
        (f"{EVIL}.concat.skip", "stream", EVIL),
        (f"{EVIL}.concat.up", "stream", EVIL),
        (EVIL, "activation", EVIL),
    ]
    run = make_run(layers=layers, record={"recipe": EVIL, "status": EVIL, "notes": [EVIL], "versions": {EVIL: EVIL}})
    panels = run / layout.PANELS / layout.PANELS_INDEX
    panels.write_text(json.dumps([{"case": EVIL, "stage": EVIL, "scores": {EVIL: 0.5},
                                   "images": [{"title": EVIL, "file": EVIL}]}]), encoding="utf-8")  # fmt: skip
    (run / layout.METRICS_TABLE).write_text(f"step,epoch,val/{EVIL}\n1,0,0.5\n2,0,0.6\n", encoding="utf-8")
    (run / layout.METRICS_SUMMARY).write_text(json.dumps({f"test/{EVIL}": 0.5}), encoding="utf-8")
    (run / layout.CONFIG).write_text(f"name: {EVIL}\n", encoding="utf-8")
    page = page_of(run)
    tags = Tags(page)
    assert tags.tags["img"] == 0
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert any(EVIL in text for text in tags.texts)


@pytest.mark.parametrize(
    "name", ["$x_1$ and $y$", "_private", "слой", "層.1", "a\x00b\x1b", "\ud800", "a&b\"c'd", "x" * 300]
)
def test_any_layer_name_can_be_drawn(make_run, name):
    run = make_run(layers=[("plain", "norm", "BatchNorm2d")])
    import pandas as pd

    table = pd.read_parquet(run / layout.MONITOR)
    table["layer"] = name.encode("utf-8", "replace").decode("utf-8")
    table.to_parquet(run / layout.MONITOR / "0.parquet")
    assert 'id="drift"' in page_of(run)


def test_secrets_of_config_and_command_are_hidden(finished_page):
    page = finished_page
    assert "s3cr3t-value" not in page
    assert "membranes" in page
    assert "--api_key" in page


def test_typical_run_stays_below_two_megabytes(make_run):
    run = make_run(steps=4000, every=20, levels=3, cases=6, size=96)
    assert write_report(run).stat().st_size < 2_000_000


def test_large_run_is_thinned_and_says_so(make_run):
    layers = [(f"blocks.{block}.norm", "norm", "LayerNorm") for block in range(120)]
    run = make_run(steps=5000, every=10, layers=layers)
    page = page_of(run)
    assert "The 90 layers with the largest values of 120 are drawn." in page
    assert "Each column shows the largest of up to 2 samples." in page
    assert len(page) < 2_000_000


def test_run_with_nothing_but_its_config_says_what_is_missing(make_run):
    run = make_run()
    for entry in (layout.RECORD, layout.METRICS_TABLE, layout.METRICS_SUMMARY):
        (run / entry).unlink()
    for folder in (layout.MONITOR, layout.PANELS):
        for file in (run / folder).iterdir():
            file.unlink()
    page = page_of(run)
    missing = re.findall(r'<p class="missing">([^<]+)</p>', page)
    assert len(missing) == 6
    assert "metrics.csv holds no metrics yet" in missing[0]
    assert "add ics_apps.callbacks.ActivationMonitor" in missing[2]
    assert "This run was not probed" in missing[3]
    assert "when a run tests its best checkpoint" in missing[4]
    assert "run.json is missing" in missing[5]


def test_interrupted_run_with_half_a_line_and_damaged_files_still_gives_a_page(make_run):
    run = make_run(record={"status": "interrupted", "finished": None, "seconds": None})
    (run / layout.METRICS_SUMMARY).unlink()
    table = run / layout.METRICS_TABLE
    table.write_text(table.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    (run / layout.MONITOR / "1.parquet").write_bytes(b"PAR1 cut off")
    page = page_of(run)
    assert "The last line of metrics.csv was cut off and is left out." in page
    assert "monitor/1.parquet could not be read" in page
    assert "metrics.json is missing, because the run has not been tested" in page
    assert "The run was interrupted at step 400" in page


def test_metrics_that_are_not_finite_are_named(make_run):
    run = make_run()
    rows = "step,epoch,train/loss,val/dice\n10,0,0.5,\n20,0,nan,\n30,0,nan,nan\n40,0,inf,0.5\n"
    (run / layout.METRICS_TABLE).write_text(rows, encoding="utf-8")
    (run / layout.METRICS_SUMMARY).write_text('{"test/dice": NaN}', encoding="utf-8")
    page = page_of(run)
    assert "train/loss was not finite in 3 of 4 values, first at step 20." in page
    assert "val/dice is 0.500 at step 40, its only value" in page


def test_monitor_without_a_finite_number_still_gives_a_page(make_watched):
    nan = float("nan")
    page = page_of(make_watched(change=lambda row: {**row, **dict.fromkeys(floats(row), nan), "dead_channels": -1}))
    missing = re.findall(r'<section id="(\w+)">\n<h2>[^<]*</h2>\n<p class="missing">', page)
    assert missing == [*LAYERS, "probes"]


def test_files_of_an_older_monitor_show_what_they_hold_and_name_what_they_do_not(make_run):
    page = page_of(make_run())
    missing = re.findall(r'<p class="missing">([^<]+)</p>', page)
    assert [text.split(":")[0] for text in missing] == [
        "Nothing was watched for alarms",
        "No gradient above 0 was measured",
        "No weight was measured",
        "This run was not probed",
    ]
    assert "Percentile bands of 6 layers by step." in page
    assert "Histograms of" not in page


def test_column_that_is_empty_everywhere_leaves_the_others(make_watched):
    page = page_of(make_watched(change=lambda row: {**row, "grad_rms": float("nan"), "effective_lr": float("nan")}))
    assert "No gradient above 0 was measured" in page
    assert "one optimizer step changed" in page


def test_alarms_are_counted_in_the_head(finished_page, make_run):
    assert "<dt>alarms</dt><dd>4</dd>" in finished_page
    assert "<dt>alarms</dt>" not in page_of(make_run())


def test_alarm_with_markup_stays_text(make_watched):
    page = page_of(make_watched(alarms=[{"step": 1, "rule": EVIL, "layer": EVIL, "sentence": EVIL, "remedy": EVIL}]))
    assert Tags(page).tags["img"] == 12  # the panels' pictures


def test_one_sample_has_no_drift_but_a_size(make_watched):
    page = page_of(make_watched(steps=[0]))
    assert "No drift above 0 was measured" in page
    assert "RMS of the output" in page


def test_directory_that_is_no_run_is_refused_by_name(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ReportError, match=r"photos is not a run directory: .*config\.yaml, run\.json"):
        write_report(tmp_path / "photos")


def test_misspelt_run_directory_names_the_nearest(make_run, tmp_path):
    make_run("unet-group")
    with pytest.raises(ReportError, match=r"unet-grup does not exist.*did you mean .*unet-group\?"):
        write_report(tmp_path / "unet-grup")


def test_folder_of_runs_names_one_inside(make_run, tmp_path):
    make_run("unet-group")
    with pytest.raises(ReportError, match=r"not a run directory.*did you mean .*unet-group\?"):
        write_report(tmp_path)


def test_file_is_not_a_run_directory(make_run):
    with pytest.raises(ReportError, match=r"config\.yaml is a file, but"):
        write_report(make_run() / layout.CONFIG)


def test_directory_as_output_is_refused(make_run, tmp_path):
    with pytest.raises(ReportError, match="is a directory; give the file to write"):
        write_report(make_run(), tmp_path)


def test_output_that_cannot_be_written_is_one_sentence(make_run):
    run = make_run()
    with pytest.raises(ReportError, match="cannot be written"):
        write_report(run, run / layout.CONFIG / "report.html")


def test_older_page_stays_until_the_new_one_is_complete(make_run, monkeypatch):
    run = make_run()
    (run / layout.REPORT).write_text("old", encoding="utf-8")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ReportError, match="No space left on device"):
        write_report(run)
    assert (run / layout.REPORT).read_text(encoding="utf-8") == "old"
    assert [path.name for path in run.iterdir() if path.name.endswith(".part")] == []


def test_import_stays_light():
    code = (
        "import sys, ics_apps.reports; print(*sorted({'matplotlib', 'pandas', 'jinja2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_matplotlib_settings_are_put_back_and_pyplot_stays_away(make_run):
    code = """
import pathlib, sys
import matplotlib as mpl
from ics_apps.reports import write_report
names = [name for name in mpl.rcParams if name != "backend"]  # reading the backend would choose one
before = [mpl.rcParams[name] for name in names]
write_report(pathlib.Path(sys.argv[1]))
print([mpl.rcParams[name] for name in names] == before, "matplotlib.pyplot" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(make_run())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
