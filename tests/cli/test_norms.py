"""What `ics-apps norms` says of the registry: the table, the picture, the page; its cost is in `test_norms_cost`."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest

from ics_apps.cli import main
from ics_apps.cli.norms.page import as_yaml, page_lines
from ics_apps.cli.norms.picture import picture
from ics_apps.cli.norms.table import table_lines
from ics_apps.norms import NormEntry, list_norms, norm_entry


def weight_entry(name: str) -> NormEntry:
    return dataclasses.replace(norm_entry("none"), name=name, family="weight", acts_on_weight=True)


def drawn(entry: NormEntry | str) -> list[str]:
    """The rows of samples of a picture, without the labels."""
    lines = picture(norm_entry(entry) if isinstance(entry, str) else entry)
    return [line.split("  ", 1)[1] for line in lines if line.startswith("sample")]


# The table


def test_the_table_fits_120_columns_with_every_norm_in_it() -> None:
    lines = table_lines([norm_entry(name) for name in list_norms()], 120)
    assert max(map(len, lines)) <= 120
    end_of_rows = len(lines) - lines[::-1].index("") - 1  # the legend stands behind the last empty line
    rows = [line.split()[0] for line in lines[2:end_of_rows] if line]
    assert sorted(rows) == list_norms()


@pytest.mark.parametrize("width", [100, 80, 66])
def test_the_table_adapts_to_narrow_terminals(width: int) -> None:
    lines = table_lines([norm_entry(name) for name in list_norms()], width)
    assert max(map(len, lines)) <= width
    assert {line.split()[0] for line in lines if line} >= set(list_norms())


def test_the_narrowest_table_gives_up_the_family_column() -> None:
    lines = table_lines([norm_entry("batch"), norm_entry("none")], 30)
    assert lines[:4] == [
        "norm   pools  M S I C D B A",
        "batch  N,S    M S I - - B -",
        "",
        "none   -      - - - - D B -",
    ]


def test_a_row_shows_the_promises() -> None:
    lines = table_lines([norm_entry("batch"), norm_entry("filter_response")], 120)
    cells = {line.split()[0]: line.split() for line in lines if line}
    assert cells["batch"] == ["batch", "batch", "N,S", "yes", "yes", "yes", "-", "-", "yes", "-"]
    assert cells["filter_response"] == ["filter_response", "sample", "S", "-", "-", "yes", "-", "-", "yes", "yes"]


def test_norms_are_grouped_by_family() -> None:
    entries = [norm_entry(name) for name in ("none", "group", "batch", "layer_c")]
    lines = table_lines(entries, 120)[2:]
    assert [line.split()[0] if line else "" for line in lines[:6]] == ["batch", "", "group", "layer_c", "", "none"]


def test_a_norm_on_weights_pools_over_the_weight() -> None:
    row = table_lines([weight_entry("weight_norm")], 120)[2]
    assert row.split()[:3] == ["weight_norm", "weight", "weight"]


def test_list_takes_a_pattern_and_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norms", "list", "b*", "--family", "batch"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:] if line]
    assert "batch_frozen" in names
    assert "batch_channel" not in names
    assert "group" not in names


def test_the_bare_verb_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["norms"]) == 0
    bare = capsys.readouterr().out
    assert main(["norms", "list"]) == 0
    assert capsys.readouterr().out == bare


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "gruop"], "unknown norm 'gruop'; did you mean 'group'? `ics-apps norms list` shows all"),
        (["list", "gruop"], "no norm matches 'gruop'; did you mean 'group'? `ics-apps norms list` shows all"),
        (["list", "group", "--family", "batch"], "no norm in the family 'batch' matches 'group'"),
        (["list", "--family", "smaple"], "unknown family 'smaple'; did you mean 'sample'?"),
    ],
)
def test_a_wrong_word_is_told_with_the_nearest(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["norms", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"ics-apps: {message}")


# The picture


@pytest.mark.parametrize(
    ("norm", "others", "own"),
    [
        ("batch", "..... ##### ..... .....", "..... ##@## ..... ....."),
        ("instance", "..... ..... ..... .....", "..... ##@## ..... ....."),
        ("layer_chw", "..... ..... ..... .....", "##### ##@## ##### #####"),
        ("layer_c", "..... ..... ..... .....", "..#.. ..@.. ..#.. ..#.."),
        ("rms", "..... ..... ..... .....", "..#.. ..@.. ..#.. ..#.."),
        ("none", "..... ..... ..... .....", "..... ..@.. ..... ....."),
        ("batch_frozen", "..... ..... ..... .....", "..... ..@.. ..... ....."),
    ],
)
def test_the_picture_fills_what_shares_statistics(norm: str, others: str, own: str) -> None:
    rows = [" ".join(row.split()) for row in drawn(norm)]
    assert rows == [others, own, others, others]


def test_the_whole_picture_of_group_norm() -> None:
    assert picture(norm_entry("group")) == [
        "channel     0      1   |   2      3",
        "sample 0  .....  ..... | .....  .....",
        "sample 1  #####  ##@## | .....  .....",
        "sample 2  .....  ..... | .....  .....",
        "sample 3  .....  ..... | .....  .....",
        "",
        "@ is one value, # are those that share its statistics, . the others.",
        "Each cell is the run of positions S of one sample and channel.",
    ]


def test_a_norm_of_several_statistics_is_drawn_once_for_each() -> None:
    lines = picture(norm_entry("switchable"))
    assert [line for line in lines if line.endswith(":")] == ["Batch part:", "Layer part:", "Instance part:"]
    assert drawn("switchable") == drawn("batch") + drawn("layer_chw") + drawn("instance")


def test_a_plug_in_is_drawn_by_its_pools() -> None:
    entry = dataclasses.replace(norm_entry("none"), name="mine", pools=("N", "C/G"))
    assert drawn(entry) == ["..#..  ..#.. | .....  ....."] + ["..#..  ..@.. | .....  ....."] + [
        "..#..  ..#.. | .....  ....."] * 2  # fmt: skip


def test_ghost_batches_do_not_see_each_other() -> None:
    entry = dataclasses.replace(norm_entry("batch"), name="ghost_batch")
    assert [("#" in row or "@" in row) for row in drawn(entry)] == [True, True, False, False]
    assert picture(entry)[1].startswith("sample 0 ghost 0  ")


def test_domains_have_statistics_of_their_own() -> None:
    entry = dataclasses.replace(norm_entry("batch"), name="batch_per_domain")
    assert [("#" in row or "@" in row) for row in drawn(entry)] == [False, True, False, True]
    assert [line.split("  ")[0] for line in picture(entry)[1:3]] == ["sample 0 domain 0", "sample 1 domain 1"]


def test_a_window_ends_within_the_channels() -> None:
    entry = dataclasses.replace(norm_entry("layer_c"), name="local_response")
    assert drawn(entry)[1] == "..#..  ..@..  ..#..  ....."
    entry = dataclasses.replace(norm_entry("layer_chw"), name="divisive")
    assert drawn(entry)[1] == ".###.  .#@#.  .###.  .###."


# What a value looks at is not what is drawn: one statistic follows another (batch_channel, divisive), a maximum chooses
# between two (evonorm_b0), a reference batch joins (virtual_batch).
OTHER_REACH = ("batch_channel", "divisive", "evonorm_b0", "virtual_batch")
SMALL_OPTIONS = {"num_groups": 2, "batch_size": 2, "size": 3}


@pytest.mark.parametrize("name", [n for n in list_norms() if n not in OTHER_REACH and not norm_entry(n).acts_on_weight])
def test_the_picture_shows_which_values_a_layer_looks_at(name: str) -> None:
    entry = norm_entry(name)
    union = {
        (number % 4, channel, position)
        for number, row in enumerate(drawn(name))
        for channel, cell in enumerate(row.replace("|", " ").split())
        for position, mark in enumerate(cell)
        if mark in "@#"
    }
    assert union == looked_at(entry)


def looked_at(entry: NormEntry) -> set[tuple[int, int, int]]:
    """The values of a batch of 4 samples, 4 channels and 5 positions that move the output of the marked one."""
    import torch

    from ics_apps.norms import make_norm
    from ics_apps.norms.condition import norm_context

    tokens = 1 not in entry.dims
    options = {key: value for key, value in SMALL_OPTIONS.items() if key in entry.options}
    norm = make_norm({"name": entry.name, **options}, 4, "tokens" if tokens else 1).double()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in norm.named_parameters():  # some start where they hide what is looked at
        parameter.data.copy_(0.25 + 0.5 * torch.rand(parameter.shape, generator=generator))
        if key == "threshold":
            parameter.data.fill_(-99)
    start = copy.deepcopy(norm.state_dict())
    x = torch.randn(4, 4, 5, generator=generator, dtype=torch.float64)
    two = torch.tensor([0, 1, 0, 1])

    def output(moved: tuple[int, int, int] | None) -> float:
        values = x.clone()
        if moved is not None:
            values[moved] += 1
        norm.load_state_dict(start)
        torch.manual_seed(0)
        with norm_context(domain=two, label=two, style=x.transpose(1, 2) if tokens else x):
            y = norm(values.transpose(1, 2) if tokens else values)
        return float(y.detach()[1, 2, 1] if tokens else y.detach()[1, 1, 2])

    before = output(None)
    places = [(n, c, s) for n in range(4) for c in range(4) for s in range(5)]
    return {place for place in places if abs(output(place) - before) > 1e-9}


def test_tokens_are_called_tokens() -> None:
    assert "the run of tokens L" in picture(norm_entry("layer"))[-1]


def test_a_norm_without_statistics_says_so() -> None:
    assert picture(norm_entry("none"))[-2].startswith("No statistics of the input")


def test_a_norm_on_weights_is_drawn_as_a_matrix() -> None:
    rows = picture(weight_entry("weight_standardization"))
    assert rows[0] == "input     0  1  2  3  4  5  6  7  8"
    assert rows[1] == "output 0  .  .  .  .  .  .  .  .  ."
    assert rows[2] == "output 1  #  #  #  #  @  #  #  #  #"
    assert "one row" in rows[6]
    whole = picture(weight_entry("spectral_norm"))
    assert whole[1] == "output 0  #  #  #  #  #  #  #  #  #"
    assert whole[2] == rows[2]
    assert "whole weight" in whole[6]


# The page


@pytest.mark.parametrize("name", list_norms())
def test_every_norm_can_be_described(name: str) -> None:
    entry = norm_entry(name)
    lines = page_lines(entry, 120)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 120
    assert lines[0] == f"{name} ({entry.family})"
    assert entry.summary in text
    for option in entry.options:
        assert f"{option}: " in text
    assert "Reference:" not in text, "the paper is told twice"


def test_the_page_of_group_norm_answers_the_questions() -> None:
    text = "\n".join(page_lines(norm_entry("group"), 120))
    for words in (
        "y = (x - mean_g) / sqrt(var_g + eps)",
        "When to use: batches smaller than 16",
        "sample 1  #####  ##@## | .....  .....",
        "pools over C/G, S",
        "Options    num_groups: 8, eps: 1.0e-05, affine: true",
        "--model.norm '{name: group, num_groups: 8}'",
        "Paper      Wu & He 2018 (1803.08494)",
    ):
        assert words in text


def test_the_page_says_which_inputs_are_refused_and_why() -> None:
    text = " ".join("\n".join(page_lines(norm_entry("instance"), 120)).split())
    assert "not the others: features have no positions to pool over" in text


@pytest.mark.parametrize("name", list_norms())
def test_a_default_reads_back_from_yaml_as_itself(name: str) -> None:
    import yaml

    for value in norm_entry(name).options.values():
        assert yaml.safe_load(as_yaml(value)) == value


def test_a_narrow_terminal_wraps_the_page() -> None:
    assert max(map(len, page_lines(norm_entry("layer"), 70))) <= 70


def test_a_norm_with_a_condition_is_not_offered_to_recipes() -> None:
    entry = dataclasses.replace(norm_entry("batch"), needs_condition=True)
    assert "--model.norm batch" in "\n".join(page_lines(norm_entry("batch"), 120))
    assert "--model.norm" not in "\n".join(page_lines(entry, 120))


def test_the_decision_page_names_registered_norms() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/choose_a_norm.md").read_text()
    names = set(re.findall(r"`([a-z][a-z0-9_]*)`", page)) - {"running_gap"}
    assert len(names) > 25
    assert names <= set(list_norms())
