"""Runs side by side: who is best, what was set differently, and the layers that they have in common."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ics_apps.reports import ReportError, write_comparison
from ics_apps.reports.comparison.headline import ABSENT, best_run, headline_metrics, metric_tables
from ics_apps.reports.comparison.labels import run_labels
from ics_apps.reports.comparison.maps import side_by_side
from ics_apps.reports.comparison.overlays import MAX_CHARTS, metric_overlays
from ics_apps.reports.comparison.settings import differing, flat_settings
from ics_apps.reports.comparison.words import metric_words
from ics_apps.reports.heatmaps import Map
from ics_apps.reports.layers import Grid
from ics_apps.reports.run_files import read_run
from ics_apps.runs import layout

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def two(make_watched):
    """Two runs: B has no norm, one layer more, drifts faster, and is better in nothing but the Dice of one class."""
    a = make_watched("a", cases=0)
    plain = [("net.conv", "conv", "Conv2d"), ("net.encoder.0.conv1", "conv", "Conv2d"),
             ("net.encoder.0.act1", "activation", "ReLU")]  # fmt: skip
    b = make_watched("b", layers=plain, speed=4.0, alarms=[], cases=0)
    config = (b / layout.CONFIG).read_text(encoding="utf-8")
    (b / layout.CONFIG).write_text(config.replace("{name: group, groups: 8}", "none"), encoding="utf-8")
    scores = {"test/dice": 0.7, "test/hd95": 20.0, "test/dice/membrane": 0.9}
    (b / layout.METRICS_SUMMARY).write_text(json.dumps(scores), encoding="utf-8")
    return a, b


def page_of(runs, out: Path) -> str:
    return write_comparison(runs, out).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    return " ".join(re.findall(r"<p>([^<]+)</p>", page[page.index('class="reading"') : page.index("<nav")]))


def grid(values, labels, steps=None):
    values = np.asarray(values, dtype=float)
    return Grid(tuple(labels), ("norm",) * len(values), np.arange(values.shape[1]) if steps is None else steps, values)


def test_page_has_every_section_and_loads_nothing(two, tmp_path):
    page = page_of(two, tmp_path / "c.html")
    ids = re.findall(r'<section id="(\w+)">', page)
    assert ids == ["metrics", "settings", "curves", "drift", "alarms", "runs"]
    assert not re.search(r"https?://|<script|<link|<iframe|@import", page)
    inside = re.findall(r'\sid="([^"]+)"', page)
    assert len(inside) == len(set(inside))


def test_words_tell_the_best_run_the_settings_the_drift_and_the_alarms(two, tmp_path):
    words = words_of(page_of(two, tmp_path / "c.html"))
    assert "test/dice is best in a (0.810); it is 0.700 in b." in words
    assert "test/dice/membrane is best in b (0.900); it is 0.770 in a." in words
    assert "3 settings differ: model.init_args.norm, model.init_args.norm.groups, model.init_args.norm.name." in words
    assert re.search(r"Distance of the median layer .*: 0\.\d+ in a and \d\.\d+ in b\.", words)
    assert "Alarms: 4 in a and none in b." in words


def test_layers_that_do_not_match_are_named_and_the_others_are_drawn(two, tmp_path):
    page = page_of(two, tmp_path / "c.html")
    assert "2 layers are common to these runs. Not common, of a: net.encoder.0.norm1," in page
    assert "and 26 more. Not common, of b: net.conv." in page
    assert "Heat maps of 2 layers by step for a, b" in page


def test_runs_without_a_common_layer_still_have_a_page(make_watched, tmp_path):
    runs = [make_watched(name, layers=[(name, "conv", "Conv2d")]) for name in ("a", "b")]
    page = page_of(runs, tmp_path / "c.html")
    assert "0 layers are common to these runs. Not common, of a: a. Not common, of b: b." in page
    assert "Median over all layers of each run" in page
    assert "Heat maps" not in page


def test_older_run_and_a_run_without_a_monitor_can_be_compared(make_watched, make_run, tmp_path):
    new, old, bare = make_watched("new"), make_run("old"), make_run("bare")
    for file in (bare / layout.MONITOR).iterdir():
        file.unlink()
    page = page_of([new, old, bare], tmp_path / "c.html")
    assert "Alarms: 4 in new; old and bare were not watched." in words_of(page)
    assert page_of([old, bare], tmp_path / "d.html").count("Fewer than two of these runs were watched") == 1


def test_runs_that_hold_nothing_but_a_config_can_be_compared(make_run, tmp_path):
    runs = []
    for name in ("a", "b"):
        run = tmp_path / name
        run.mkdir()
        (run / layout.CONFIG).write_text("seed: 1\n", encoding="utf-8")
        runs.append(run)
    page = page_of(runs, tmp_path / "c.html")
    assert "The 2 configurations are the same." in page
    assert "No setting differs." in words_of(page)


def test_best_values_are_marked_by_the_direction_of_the_metric(two):
    runs = [read_run(run) for run in two]
    (table,) = metric_tables(headline_metrics(runs), ["a", "b"])
    marked = {table.rows[row][0]: ["a", "b"][column - 1] for row, column in table.best if row < 3}
    assert marked == {"test/dice ↑": "a", "test/hd95 ↓": "a", "test/dice/membrane ↑": "b"}
    assert table.rows[3][1:] == ("0.310", ABSENT)


def test_equal_values_are_not_marked():
    (table,) = metric_tables({"test/dice": (0.5, 0.5), "test/iou": (0.5, 0.4)}, ["a", "b"])
    assert table.best == {(1, 1)}


def test_best_runs_that_are_equal_share_the_sentence():
    sentences = metric_words({"test/dice": (0.8, 0.7, 0.8), "test/hd95": (1.0, 1.0, 1.0)}, ["a", "b", "c"])
    assert sentences == ["test/dice is best in a and c (0.800); it is 0.700 in b.", "test/hd95 is 1.00 in a, b and c."]


def test_worse_runs_beyond_the_first_are_counted():
    (sentence,) = metric_words({"test/dice": tuple(0.9 - 0.1 * i for i in range(7))}, "abcdefg")
    assert sentence.endswith("0.800 in b, 0.700 in c, 0.600 in d, 0.500 in e and worse in 2 more runs.")


def test_totals_and_losses_are_drawn_before_classes(two):
    drawings, others = metric_overlays([read_run(run) for run in two], ["a", "b"])
    assert [drawing.caption.split(".")[0] for drawing in drawings] == [
        "val/dice",
        "val/loss",
        "train/loss",
        "val/dice/membrane",
    ]
    assert others == []


def test_metrics_beyond_those_drawn_are_named(make_run):
    run = make_run()
    names = [f"val/dice/{i}" for i in range(9)]
    row = ",".join("1" for _ in names)
    (run / layout.METRICS_TABLE).write_text(f"step,{','.join(names)}\n1,{row}\n", encoding="utf-8")
    drawings, others = metric_overlays([read_run(run)], ["a"])
    assert len(drawings) == MAX_CHARTS
    assert others == names[MAX_CHARTS:]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("test/dice", [0.1, 0.3, 0.2], 1),
        ("best val/loss", [0.1, 0.3, float("nan")], 0),
        ("test/dice", [0.1, float("nan")], None),
        ("test/odd", [0.1, 0.2], None),
        ("test/dice", [float("inf"), 0.2, 0.1], 1),
    ],
)
def test_best_run_needs_two_values_and_a_known_direction(name, values, best):
    assert best_run(name, values) == best


def test_runs_in_folders_of_one_name_are_told_apart_by_the_folders_above():
    paths = [Path("/s/gn/seed/0"), Path("/s/bn/seed/0"), Path("/s/bn/other"), Path("/deep/er/gn/seed/0")]
    assert run_labels(paths) == ("s/gn/seed/0", "bn/seed/0", "other", "er/gn/seed/0")


def test_long_labels_stay_different():
    paths = [Path(f"/s/{'x' * 40}{middle}{'y' * 40}") for middle in "ab"]
    labels = run_labels(paths)
    assert len(set(labels)) == 2
    assert max(map(len, labels)) <= 33


def test_run_given_twice_is_refused(make_run, tmp_path):
    run = make_run("a")
    with pytest.raises(ReportError, match=r"a is given twice, but a comparison is of different runs"):
        write_comparison([run, run.parent / "." / "a"], tmp_path / "c.html")


def test_one_run_is_no_comparison(make_run):
    with pytest.raises(ReportError, match="a comparison takes two or more runs, and 1 came"):
        write_comparison([make_run()])


def test_missing_run_is_named(make_run, tmp_path):
    with pytest.raises(ReportError, match=r"nobody does not exist"):
        write_comparison([make_run(), tmp_path / "nobody"], tmp_path / "c.html")


def test_settings_name_list_items_by_their_class_and_hide_secrets():
    text = "c:\n- class_path: x.Early\n  init_args: {p: 1}\n- class_path: y.Early\n- 3\nk: {api_key: s3cr3t}\ne: {}\n"
    assert flat_settings(text) == {
        "c.Early.class_path": "x.Early",
        "c.Early.init_args.p": "1",
        "c.Early[1].class_path": "y.Early",
        "c.2": "3",
        "k.api_key": "***",
        "e": "{}",
    }


@pytest.mark.parametrize("text", ["", "a: [", "&a [*a]", "- x", "!!python/object:os.x {a: 1}"])
def test_any_text_has_settings_or_none(text):
    assert isinstance(flat_settings(text), dict)


def test_only_differing_settings_are_kept_with_what_is_absent():
    assert differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]) == {"b": ("2", "3"), "c": (ABSENT, "4")}


def test_maps_share_one_colour_scale_and_common_rows():
    what = Map("x", "log", "unit", "Caption.")
    (drawing,) = side_by_side([grid([[0.1], [1.0]], "ab"), grid([[5.0], [10.0]], "bc")], ["one", "two"], what)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)
    assert [text for text in texts if text in "abc"] == ["b"]
    assert {"one", "two", "1", "5"} <= set(texts)


def test_more_runs_than_fit_in_a_row_get_another_figure():
    grids = [grid([[0.1, 0.2]], "a") for _ in range(9)]
    assert len(side_by_side(grids, [f"run {i}" for i in range(9)], Map("x", "log", "unit", "Caption."))) == 3


def test_large_models_are_cut_to_the_layers_with_the_largest_values():
    grids = [grid(np.arange(1.0, 301)[:, None], [f"l{i}" for i in range(300)]) for _ in range(2)]
    (drawing,) = side_by_side(grids, ["a", "b"], Map("x", "log", "unit", "Caption."))
    assert "The 90 layers with the largest values of 300 are drawn." in drawing.caption


@pytest.mark.parametrize("values", [[[0.0]], [[1.0]], [[np.inf]], [[1e-30, 1e30]]])
def test_any_grids_can_be_compared(values):
    what = Map("x", "log", "unit", "Caption.")
    assert len(side_by_side([grid(values, "a"), grid(values, "a")], ["one", "two"], what)) <= 1


def test_names_with_markup_stay_text(make_watched, tmp_path):
    runs = [make_watched(name, layers=[(EVIL, "conv", EVIL)], cases=0) for name in ("a", "b")]
    (runs[0] / layout.METRICS_SUMMARY).write_text(json.dumps({EVIL: 1.0}), encoding="utf-8")
    (runs[0] / layout.CONFIG).write_text(f"'{EVIL}': '{EVIL}'\n", encoding="utf-8")
    assert "<img" not in page_of(runs, tmp_path / "c.html")
