"""The landscape is told by its ends over the grid, the Hessian by its eigenvalues with their bounds."""

from __future__ import annotations

import re

import pytest

from ics_apps.reports.probe_sections.surface import TABLE_ROWS, hessian_section, landscape_section
from ics_apps.reports.probe_sections.tables import NONE


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)


def walk(step, loss, losses):
    rows = [{"step": step, "lr_multiple": 0, "step_size": 0, "loss": loss, "gradient_change": 0}]
    return rows + [
        {"step": step, "lr_multiple": 0.5 * (i + 1), "step_size": 0.1 * (i + 1), "loss": value,
         "gradient_change": 0.2 * (i + 1), "smoothness": 3.0 + i}
        for i, value in enumerate(losses)
    ]  # fmt: skip


def eigen(step=0, **given):
    return {
        "step": step, "lambda_max": 50.0, "lambda_max_bound": 0.5, "lambda_min": -2.0, "lambda_min_bound": 0.1,
        "lambda_min_converged": True, "trace": 100.0, "trace_error": 5.0, "negative_mass": 0.25,
        "effective_rank": 4.0, "damped_condition": 501.0, "damping": 0.1, "products": 30, "sharpness_limit": 200.0,
        **given,
    }  # fmt: skip


def test_the_loss_is_told_from_the_weights_to_the_ends_of_the_grid(table_of):
    section = landscape_section(table_of("landscape", [*walk(0, 2.0, [1.5, 9.0]), *walk(50, 1.0, [0.75, 0.5])]))
    loss, change, smoothness = section.figures
    assert loss.caption.startswith(
        "At step 50 a step of 0.5 to 1 learning rates against the gradient took the loss from 1.00 to between 0.500 "
        "and 0.750."
    )
    assert change.caption.startswith("At step 50 the gradient changed by 0.200 to 0.400")
    assert smoothness.caption.startswith("The effective smoothness was 4.00 at step 0 and 4.00 at step 50")


def test_the_weights_themselves_are_no_step_of_the_grid(table_of):
    section = landscape_section(table_of("landscape", walk(0, 2.0, [1.5, 1.8])))
    assert "between 1.50 and 1.80" in section.figures[0].caption


def test_a_loss_that_leaves_the_numbers_is_told(table_of):
    section = landscape_section(table_of("landscape", [*walk(0, 2.0, [1.5, 1.8]), *walk(10, 2.0, [1.5, "inf"])]))
    assert "between 1.50 and infinite" in section.figures[0].caption


def test_a_landscape_of_a_single_row_is_missing(table_of):
    section = landscape_section(table_of("landscape", walk(0, 2.0, [])))
    assert section.figures == ()
    assert section.missing


def test_the_largest_eigenvalue_is_held_against_the_limit_of_the_learning_rate(table_of):
    largest = hessian_section(table_of("hessian", [eigen(), eigen(900)]), None).figures[0]
    assert largest.caption.startswith(
        "At step 900 the largest eigenvalue was 50.0 ± 0.500, 0.250 times 2 / learning rate = 200."
    )
    assert {"within its error bound", "largest", "2 / learning rate"} <= set(texts(largest))


def test_without_a_learning_rate_there_is_no_limit(table_of):
    largest = hessian_section(table_of("hessian", [eigen(sharpness_limit="")]), None).figures[0]
    assert "learning rate" not in largest.caption + " ".join(texts(largest))


def test_a_smallest_eigenvalue_that_has_not_converged_is_hollow_and_told(table_of):
    rows = [eigen(), eigen(10, lambda_min_converged=False)]
    smallest = hessian_section(table_of("hessian", rows), None).figures[1]
    assert "had not converged: the true one is at most that" in smallest.caption
    assert "1 of 2 measurements had converged." in smallest.caption
    assert {"converged", "not converged"} <= set(texts(smallest))
    converged = hessian_section(table_of("hessian", [eigen()]), None).figures[1]
    assert "not converged" not in texts(converged)


def test_the_table_has_errors_gaps_and_the_damping_in_its_header(table_of):
    (table,) = hessian_section(table_of("hessian", [eigen()]), None).tables
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row == {
        "step": "0", "largest": "50.0 ± 0.500", "largest / 5th": NONE, "smallest": "-2.00 ± 0.100",
        "trace": "100 ± 5.00", "negative mass": "0.250", "effective rank": "4",
        "condition (damping 0.1)": "501",
    }  # fmt: skip


def test_a_long_run_shows_some_measurements_with_the_first_and_the_last(table_of):
    (table,) = hessian_section(table_of("hessian", [eigen(step) for step in range(40)]), None).tables
    steps = [row[0] for row in table.rows]
    assert len(steps) == TABLE_ROWS
    assert (steps[0], steps[-1]) == ("0", "39")
    assert "10 of 40 measurements" in table.caption


@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-5", "0"])
@pytest.mark.parametrize("column", ["lambda_max", "lambda_max_bound", "lambda_min_bound", "sharpness_limit", "trace"])
def test_any_eigenvalue_can_be_drawn(table_of, column, value):
    section = hessian_section(table_of("hessian", [eigen(), eigen(10, **{column: value})]), None)
    assert len(section.figures) == 2


def test_density_alone_makes_a_section(table_of):
    table = table_of("spectral_density", [{"step": 0, "eigenvalue": x, "density": 1.0} for x in (-1, 0, 1)])
    assert len(hessian_section(None, table).figures) == 1


def test_no_eigenvalue_at_all_is_told(table_of):
    section = hessian_section(table_of("hessian", [{"step": 0, "products": 3}]), None)
    assert section.figures == ()
    assert section.missing.startswith("No eigenvalue was measured")
