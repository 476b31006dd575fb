"""The list of problems, and the checks of one pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ics_apps.tasks.segmentation.data.checks import (
    DataError,
    Problems,
    check_alike,
    check_finite,
    check_pair,
    nearest,
)
from ics_apps.tasks.segmentation.data.volume import Volume


def volume(shape: tuple[int, ...], spacing: float = 1.0, affine_gap: float = 0.0, *, mask: bool = False) -> Volume:
    values = np.zeros(shape if mask else (1, *shape), dtype=np.uint8)
    return Volume(values, (spacing,) * len(shape), np.eye(4) + affine_gap)


def test_twenty_problems_are_listed_and_the_rest_counted() -> None:
    problems = Problems(Path("root"))
    for number in range(23):
        problems.add(Path(f"root/images/{number}.png"), "no mask")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    lines = str(caught.value).splitlines()
    assert lines[0] == "23 problems in root:"
    assert lines[1] == "  images/0.png: no mask"
    assert lines[20] == "  images/19.png: no mask"
    assert lines[21:] == ["  and 3 more"]


def test_no_problem_raises_nothing() -> None:
    Problems(Path("root")).raise_if_any()


def test_sizes_that_differ_are_both_named() -> None:
    fault = check_pair(volume((4, 5)), volume((5, 4), mask=True))
    assert fault == "the mask is 5 x 4 but its image is 4 x 5"


def test_affines_may_differ_by_a_thousandth() -> None:
    assert check_pair(volume((2, 2, 2)), volume((2, 2, 2), affine_gap=9e-4, mask=True)) is None
    fault = check_pair(volume((2, 2, 2)), volume((2, 2, 2), affine_gap=2e-3, mask=True))
    assert fault is not None
    assert fault.startswith("the affines of mask and image differ by 0.002 (allowed is 0.001)")


def test_spacings_that_differ_are_both_named() -> None:
    fault = check_pair(volume((2, 2, 2)), volume((2, 2, 2), spacing=1.5, mask=True))
    assert fault == "the mask has spacing 1.5 x 1.5 x 1.5 mm but its image has 1 x 1 x 1 mm"


def test_nan_and_infinity_are_counted() -> None:
    values = np.zeros((1, 2, 3), dtype=np.float32)
    assert check_finite(values) is None
    values[0, 0, :2] = np.nan, np.inf
    assert check_finite(values) == "NaN or infinite at 2 of 6 voxels"


def test_the_odd_one_out_is_named_against_the_usual_number() -> None:
    problems = Problems(Path("root"))
    files = [Path(f"root/{name}.png") for name in "abc"]
    assert check_alike(files, [1, 3, 1], "channels", None, problems) == 1
    assert problems.found == [("b.png", "3 channels, but 2 of 3 cases have 1")]


def test_a_number_asked_for_holds_for_all() -> None:
    problems = Problems(Path("root"))
    assert check_alike([Path("root/a.png")], [1], "channels", 3, problems) == 3
    assert problems.found == [("a.png", "1 channels, but asked for are 3")]


def test_nearest_name_ignores_case_first() -> None:
    assert nearest("cell_1", ["cell_11", "CELL_1"]) == "CELL_1"
    assert nearest("cell_1", ["zzz"]) is None
