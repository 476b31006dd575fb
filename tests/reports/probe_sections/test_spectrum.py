"""The density is drawn of the first and the last measurement, on both sides of 0."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ics_apps.reports.probe_sections.spectrum import density_chart


def texts(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def bells(step, low, high):
    grid = np.linspace(low - 1, high + 1, 101)
    density = np.exp(-((grid - low) ** 2)) + np.exp(-(grid**2)) + np.exp(-((grid - high) ** 2))
    return [{"step": step, "eigenvalue": x, "density": y} for x, y in zip(grid, density, strict=True)]


def test_first_and_last_are_drawn_and_told_by_their_reach(table_of):
    rows = [*bells(0, -2, 10), *bells(50, -3, 50), *bells(100, -4, 200)]
    drawing = density_chart(table_of("spectral_density", rows))
    assert drawing.caption.startswith(
        "The smoothed spectrum reached from -3.00 to 11.0 at step 0 and from -5.00 to 201 at step 100"
    )
    assert [text for text in texts(drawing) if text.startswith("step")] == ["step 0", "step 100"]
    assert {"-1", "0", "1", "10", "100"} <= set(texts(drawing))


def test_eigenvalues_that_the_grid_does_not_tell_apart_get_no_ticks(table_of):
    ticks = texts(density_chart(table_of("spectral_density", bells(0, -2, 200))))
    assert "-1" in ticks
    assert "-0.1" not in ticks


def test_one_measurement_is_drawn_once(table_of):
    assert texts(density_chart(table_of("spectral_density", bells(7, -2, 10)))).count("step 7") == 1


@pytest.mark.parametrize("rows", [[(0.0, 1.0)], [(5.0, 1.0)], [(-3.0, 0.5), (-1.0, 0.5)], [(0.0, 1.0), (1e200, 1e-9)],
                                  [(1e-30, 3e30), (2e-30, 1e30)]])  # fmt: skip
def test_any_density_can_be_drawn(table_of, rows):
    table = table_of("spectral_density", [{"step": 0, "eigenvalue": x, "density": y} for x, y in rows])
    assert density_chart(table) is not None


@pytest.mark.parametrize("density", ["0", "nan", "inf", "-1", ""])
def test_no_density_above_zero_is_no_chart(table_of, density):
    table = table_of("spectral_density", [{"step": 0, "eigenvalue": 1.0, "density": density}])
    assert density_chart(table) is None
