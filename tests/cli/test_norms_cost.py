"""What a norm costs on this machine: measured in turns, shown by `describe`, remembered for the next call."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ics_apps.cli import main
from ics_apps.cli.norms import cost as costs
from ics_apps.cli.norms import verb
from ics_apps.cli.norms.cost import Cost, Timing, measure_cost, processor_name, time_in_turns
from ics_apps.cli.norms.remembered import cache_file, machine_key, recall, remember
from ics_apps.norms import NormEntry, NormError, list_norms, norm_entry

TINY = (2, 8, 4, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ics-apps" / "norm_costs.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names measured, by a stand-in that takes no time."""
    names: list[str] = []

    def measure(entry: NormEntry, *, device: str = "cpu") -> Cost:
        names.append(entry.name)
        return a_cost(entry.name)

    monkeypatch.setattr(verb, "measure_cost", measure)
    return names


def a_cost(norm: str = "group", **changes: Any) -> Cost:
    cost = Cost(
        norm=norm, forward=0.0031, backward=0.006, both=0.0091, batch_forward=0.0031, batch_backward=0.0048,
        batch_both=0.0077, against="batch norm", shape=(32, 64, 56, 56), threads=2, device="some CPU", torch="2.9.0",
        repeats=5, day="2026-11-24",
    )  # fmt: skip
    return dataclasses.replace(cost, **changes)


# The cost


def test_the_cost_reads_as_a_ratio_with_its_conditions() -> None:
    assert a_cost().as_text().splitlines() == [
        "forward+backward 1.18x batch norm (9.1 ms against 7.7 ms; (32, 64, 56, 56) float32, 2 threads, minimum of 5)",
        "forward 1.00x, backward 1.25x; some CPU, torch 2.9.0, 2026-11-24",
    ]
    assert "1 thread," in a_cost(threads=1).as_text()


def test_describe_measures_once_and_remembers(
    measured: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["norms", "describe", "group"]) == 0
    first = capsys.readouterr()
    assert "measuring group" in first.err
    assert "Cost       forward+backward 1.18x batch norm (9.1 ms against 7.7 ms" in first.out
    assert cache.is_file()
    assert main(["norms", "describe", "group"]) == 0
    second = capsys.readouterr()
    assert measured == ["group"]
    assert second.out == first.out
    assert second.err == ""


def test_measure_measures_again_and_no_measure_never(
    measured: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["norms", "describe", "group", "--no-measure"]) == 0
    assert "Cost       not measured on this machine yet; leave out --no-measure" in capsys.readouterr().out
    assert not measured
    assert not cache.exists()
    assert main(["norms", "describe", "group", "--measure"]) == 0
    assert main(["norms", "describe", "group", "--measure"]) == 0
    assert measured == ["group", "group"]
    assert main(["norms", "describe", "group", "--no-measure"]) == 0
    assert capsys.readouterr().out.count("forward+backward 1.18x") == 3


def test_costs_of_other_machines_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(a_cost(), "cpu")
    assert recall("group", "cpu") == a_cost()
    assert recall("batch", "cpu") is None
    assert recall("group", "cuda") is None
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert recall("group", "cpu") is None


def test_the_key_names_what_a_time_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    key = machine_key("cpu")
    assert processor_name() in key
    assert "OMP_NUM_THREADS=3" in key
    assert torch.__version__.split("+")[0] in key
    assert "ics-apps" in key


def test_two_norms_are_kept_beside_each_other(cache: Path) -> None:
    remember(a_cost("group"), "cpu")
    remember(a_cost("layer_c"), "cpu")
    assert recall("group", "cpu") == a_cost("group")
    assert list(json.loads(cache.read_text())[machine_key("cpu")]) == ["group", "layer_c"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 3}', "\xff"])
def test_a_damaged_cache_is_as_good_as_none(content: str, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    assert recall("group", "cpu") is None
    remember(a_cost(), "cpu")
    assert recall("group", "cpu") == a_cost()


def test_a_figure_of_another_layout_is_measured_again(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(json.dumps({machine_key("cpu"): {"group": {"seconds": 1}, "batch": 3, "rms": None}}))
    assert [recall(name, "cpu") for name in ("group", "batch", "rms")] == [None, None, None]


def test_an_unwritable_cache_is_told_and_the_figure_shown(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ics-apps").write_text("a file where the folder should be")
    assert main(["norms", "describe", "group"]) == 0
    told = capsys.readouterr()
    assert "forward+backward 1.18x" in told.out
    assert "the figure is not kept for the next time" in told.err


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("relative/cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_file() == tmp_path / ".cache" / "ics-apps" / "norm_costs.json"


def test_a_norm_that_cannot_be_measured_is_described_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(entry: NormEntry, *, device: str = "cpu") -> Cost:
        raise NormError("64 channels cannot be split")

    monkeypatch.setattr(verb, "measure_cost", fail)
    assert main(["norms", "describe", "group"]) == 0
    assert "Cost       could not be measured: 64 channels cannot be split" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(NormError, match="device 'tpu' is not on this machine; it has: cpu"):
        measure_cost(norm_entry("group"), shape=TINY, device="tpu")


@pytest.mark.parametrize("name", list_norms())
def test_every_norm_can_be_measured(name: str) -> None:
    cost = measure_cost(norm_entry(name), shape=TINY, repeats=1)
    assert cost.norm == name
    assert min(cost.forward, cost.backward, cost.batch_forward, cost.batch_backward) > 0
    assert cost.both == pytest.approx(cost.forward + cost.backward)


def test_what_is_not_defined_on_images_is_measured_on_as_many_tokens() -> None:
    assert measure_cost(norm_entry("layer"), shape=TINY, repeats=1).shape == (2, 16, 8)
    assert measure_cost(norm_entry("group"), shape=TINY, repeats=1).shape == TINY


def test_arms_take_turns_and_the_least_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    order: list[str] = []
    clock = Clock()
    monkeypatch.setattr(costs, "_now", lambda _: clock.now)

    def arm(name: str, seconds: list[float]) -> costs.Arm:
        durations: Iterator[float] = iter(seconds)

        def forward(x: torch.Tensor) -> torch.Tensor:
            order.append(name)
            clock.now += next(durations)
            return x * 2

        return costs.Arm(forward, torch.ones(3, requires_grad=True))

    arms = [arm("a", [9.0, 3.0, 2.0]), arm("b", [0.5, 4.0, 5.0])]
    timings = time_in_turns(arms, 2)
    assert order == ["a", "b", "a", "b", "b", "a"], "a warm-up, then turns whose first arm changes"
    assert timings == [Timing(2.0, 0.0, 2.0), Timing(4.0, 0.0, 4.0)]


def test_a_condition_is_there_while_a_norm_is_timed() -> None:
    import torch

    seen: list[bool] = []
    inside: list[bool] = [False]

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(inside[0])
        return x * 1

    time_in_turns([costs.Arm(forward, torch.ones(2, requires_grad=True), context=context)], 1)
    assert seen == [True, True]


def test_no_repeats_are_refused() -> None:
    with pytest.raises(NormError, match="repeats must be at least 1, got 0"):
        time_in_turns([], 0)


# Without torch


@pytest.mark.parametrize(
    "arguments",
    [["norms"], ["norms", "list", "--family", "sample"], ["norms", "describe", "batch", "--no-measure"],
     ["norms", "describe", "group"]],
    ids=" ".join,
)  # fmt: skip
def test_nothing_but_a_first_measurement_imports_torch(arguments: list[str]) -> None:
    remember(a_cost("group"), "cpu")
    code = (
        f"import sys\nfrom ics_apps.cli import main\nassert main({arguments!r}) == 0\n"
        "heavy = [name for name in ('torch', 'numpy', 'rich') if name in sys.modules]\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
