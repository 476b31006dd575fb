"""Panels come worst first, as stored, and only from the panels folder."""

from __future__ import annotations

import base64
import json

import pytest

from ics_apps.reports.panels import embed, read_panels
from ics_apps.runs import layout


def index(folder, entries) -> None:
    folder.mkdir(exist_ok=True)
    (folder / layout.PANELS_INDEX).write_text(json.dumps(entries), encoding="utf-8")


def case(name, **scores):
    return {"case": name, "stage": "test", "scores": scores, "images": []}


@pytest.mark.parametrize(
    ("score", "order"), [("dice", ["low", "middle", "high", "none"]), ("hd95", ["high", "middle", "low", "none"])]
)
def test_worst_case_comes_first_whichever_way_the_score_is_better(tmp_path, score, order):
    values = {"middle": 0.5, "none": float("nan"), "high": 0.9, "low": 0.1}
    index(tmp_path, [case(name, **{score: value}) for name, value in values.items()])
    assert [found.case for found in read_panels(tmp_path, [])] == order


def test_picture_is_embedded_as_it_is_stored(make_run):
    folder = make_run() / layout.PANELS
    picture = embed(read_panels(folder, [])[0].pictures[0])
    assert picture.data == "data:image/png;base64," + base64.b64encode((folder / "2.image.png").read_bytes()).decode()
    assert (picture.title, picture.width, picture.height) == ("image", 24, 24)


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hostname", "a/../../secret.png", "", ".", "a\0b", "link.png"])
def test_files_outside_the_panels_folder_are_not_embedded(tmp_path, make_run, file):
    folder = tmp_path / "panels"
    (tmp_path / "secret.png").write_bytes((make_run() / layout.PANELS / "0.image.png").read_bytes())
    index(folder, [{"case": "1", "scores": {}, "images": [{"title": "t", "file": file}]}])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    picture = embed(read_panels(folder, [])[0].pictures[0])
    assert picture.data == ""
    assert "is not a file of the panels folder" in picture.reason


def test_missing_and_foreign_files_are_named(tmp_path):
    index(tmp_path, [{"case": "1", "images": [{"title": "a", "file": "a.png"}, {"title": "b", "file": "b.png"}]}])
    (tmp_path / "b.png").write_bytes(b"<svg onload=alert(1)>")
    reasons = [embed(picture).reason for picture in read_panels(tmp_path, [])[0].pictures]
    assert reasons == ["a.png is missing", "b.png is not a PNG file"]


@pytest.mark.parametrize("content", ["{}", "[", "3", '[1, null, {"case": 3, "scores": [], "images": 4}]'])
def test_odd_index_is_no_error(tmp_path, content):
    (tmp_path / layout.PANELS_INDEX).write_text(content, encoding="utf-8")
    problems: list[str] = []
    cases = read_panels(tmp_path, problems)
    assert len(cases) + len(problems) == 1
