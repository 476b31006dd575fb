"""Tables of probes are read in any state: what can be read is kept, what cannot is told in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ics_apps.callbacks
from ics_apps.callbacks.probe_callback import ProbeCallback
from ics_apps.reports.layers import layer_grid
from ics_apps.reports.probe_files import TABLES, read_probes
from ics_apps.reports.run_files import read_run

FLOW = "step,layer,order,grad_norm,snr\n"


@pytest.fixture
def read(tmp_path):
    """Write one table as text, and read the folder: (tables, problems)."""

    def write_and_read(text, name="gradient_flow.csv"):
        folder = tmp_path / "probes"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        problems = []
        return read_probes(folder, problems), problems

    return write_and_read


def test_columns_are_those_that_the_callbacks_write():
    exported = [getattr(ics_apps.callbacks, name) for name in ics_apps.callbacks.__all__]
    written = {
        name: columns
        for callback in exported
        if issubclass(callback, ProbeCallback)
        for name, columns in callback.tables.items()
    }
    # A table of a function: which batch holds fakes, only a GAN's own loop knows.
    by_hand = {"batch_composition": TABLES["batch_composition"].columns}
    assert written | by_hand == {name: contract.columns for name, contract in TABLES.items()}


def test_a_missing_folder_means_that_nobody_probed(tmp_path):
    assert read_probes(tmp_path / "probes", []) is None


def test_a_header_alone_is_a_probe_that_measured_nothing(read):
    assert read(FLOW) == ({}, [])


def test_rows_come_by_step_with_names_numbers_and_gaps(read):
    tables, problems = read(FLOW + "10,b,1,0.5,\n0,a,0,1e-3,2\n")
    table = tables["gradient_flow"]
    assert table["step"].tolist() == [0, 10]
    assert table["layer"].tolist() == ["a", "b"]
    assert table["grad_norm"].tolist() == [1e-3, 0.5]
    assert np.isnan(table["snr"][1])
    assert problems == []


def test_layers_stand_in_forward_order_whatever_the_order_of_rows(read):
    tables, _ = read(FLOW + "0,last,7,3,\n0,first,0,1,\n0,middle,2,2,\n")
    grid = layer_grid(tables["gradient_flow"], "grad_norm")
    assert grid.labels == ("first", "middle", "last")
    assert grid.values[:, 0].tolist() == [1, 2, 3]


def test_layers_without_an_order_stand_where_they_are_met(read):
    header = "step,layer,norm,effective_lr,rotation,expected_rotation,weight_decay\n"
    tables, _ = read(f"{header}0,b,1,1,1,1,0\n0,a,2,1,1,1,0\n", "scale_invariance.csv")
    assert layer_grid(tables["scale_invariance"], "norm").labels == ("b", "a")


def test_a_layer_that_appears_later_takes_its_place(read):
    tables, _ = read(FLOW + "0,a,0,1,\n0,c,2,3,\n10,a,0,1,\n10,b,1,2,\n10,c,2,3,\n")
    grid = layer_grid(tables["gradient_flow"], "grad_norm")
    assert grid.labels == ("a", "b", "c")
    assert np.isnan(grid.values[1, 0])


def test_a_row_that_was_written_twice_counts_as_written_last(read):
    tables, _ = read(FLOW + "0,a,0,1,\n10,a,0,2,\n10,a,0,5,\n")
    assert tables["gradient_flow"]["grad_norm"].tolist() == [1, 5]


@pytest.mark.parametrize(
    ("text", "means"),
    [("True", True), ("1", True), ("a virtual batch", True), ("False", False), ("0", False), ("", False)],
)
def test_an_allowance_is_a_flag_or_the_reason_for_it(read, text, means):
    tables, problems = read(f"step,module,order,ratio,is_source,allowed\n0,bn,0,0.1,True,{text}\n", "leakage.csv")
    assert tables["leakage"]["allowed"].tolist() == [means]
    assert problems == []


def test_the_model_itself_has_a_name(read):
    tables, problems = read(FLOW + "0,,0,1,2\n")
    assert tables["gradient_flow"]["layer"].tolist() == ["(model)"]
    assert problems == []


def test_a_line_that_was_cut_off_is_left_out_and_told(read):
    tables, problems = read(FLOW + "0,a,0,1,2\n10,a,0,0.1")
    assert tables["gradient_flow"]["step"].tolist() == [0]
    assert problems == ["The last line of gradient_flow.csv was cut off and is left out."]


@pytest.mark.parametrize(("cell", "number"), [("1e200", np.inf), ("-1e200", -np.inf), ("1e-200", 0.0), ("inf", np.inf)])
def test_numbers_that_no_axis_can_hold_are_infinite_or_zero(read, cell, number):
    assert read(f"{FLOW}0,a,0,{cell},2\n")[0]["gradient_flow"]["grad_norm"].tolist() == [number]


def test_damaged_lines_and_cells_are_counted(read):
    tables, problems = read(FLOW + "0,a,0,1,2\nx,a,0,1,2\n20,a,0\n30,a,0,much,2\n")
    assert tables["gradient_flow"]["step"].tolist() == [0, 30]
    assert np.isnan(tables["gradient_flow"]["grad_norm"][1])
    assert problems == ["3 lines or cells of probes/gradient_flow.csv could not be read and are left out."]


def test_a_missing_column_is_told_and_the_others_stay(read):
    tables, problems = read("step,layer,order,grad_norm\n0,a,0,1\n")
    assert tables["gradient_flow"]["snr"].isna().all()
    assert problems == ["probes/gradient_flow.csv has no column `snr`; what is drawn of it is left out."]


def test_a_table_that_does_not_name_its_rows_is_left_out(read):
    tables, problems = read("step,order,grad_norm,snr\n0,0,1,2\n")
    assert tables == {}
    assert problems == ["probes/gradient_flow.csv has no column `layer`; it is left out."]


def test_a_foreign_column_is_told_and_left_out(read):
    tables, problems = read(FLOW.replace("snr", "snr,mood") + "0,a,0,1,2,good\n")
    assert "mood" not in tables["gradient_flow"]
    assert problems == ["probes/gradient_flow.csv holds a column that is not known, `mood`; it is left out."]


def test_a_foreign_table_is_told(read):
    tables, problems = read("step,mood\n0,good\n", "mood.csv")
    assert tables == {}
    assert problems == ["probes/ also holds mood.csv, of which the page draws nothing."]


def test_an_endless_cell_is_no_exception(read):
    tables, problems = read(FLOW + "0," + "a" * 200_000 + ",0,1,2\n")
    assert tables == {}
    assert problems[0].startswith("probes/gradient_flow.csv could not be read")


@given(st.binary(max_size=200), st.sampled_from(sorted(TABLES)), st.booleans())
def test_no_bytes_raise(tmp_path_factory, content, name, with_header):
    folder = tmp_path_factory.mktemp("probes")
    header = ",".join(("step", *TABLES[name].columns)).encode() + b"\n" if with_header else b""
    (folder / f"{name}.csv").write_bytes(header + content)
    assert read_probes(folder, []) is not None


def test_a_folder_of_probes_alone_is_a_run(tmp_path):
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "gradient_flow.csv").write_text(FLOW + "0,a,0,1,2\n", encoding="utf-8")
    assert list(read_run(tmp_path).probes) == ["gradient_flow"]
