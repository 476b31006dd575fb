"""The file of alarms is whole, bounded, and there even if none fired."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ics_apps.callbacks import alarm_file
from ics_apps.callbacks.alarm_file import FIELDS, FULL, AlarmFile
from ics_apps.runs.layout import ALARMS


def alarm(step: int, layer: str = "net.0") -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 1,
        "rule": "dead_units",
        "layer": layer,
        "value": np.float32(0.75),
        "threshold": 0.5,
        "sentence": 'In "net.0", 3 of 4 units are dead,\nsince step 40.',
        "remedy": "Lower the rate, or use GELU.",
    }


def opened(folder: Path, step: int = 10**6) -> AlarmFile:
    file = AlarmFile(folder)
    file.drop_from(step)
    return file


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / ALARMS)


def test_a_run_without_alarms_leaves_a_header(tmp_path: Path) -> None:
    opened(tmp_path / "monitor", 0)
    frame = table(tmp_path / "monitor")
    assert list(frame.columns) == list(FIELDS)
    assert frame.empty


def test_pandas_reads_what_was_added(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.add([alarm(20), alarm(20, "net.1#fake.1")])
    file.add([alarm(40)])
    frame = table(tmp_path)
    assert frame["step"].tolist() == [20, 20, 40]
    assert frame.iloc[1].to_dict() == alarm(20, "net.1#fake.1")


def test_no_alarm_writes_nothing(tmp_path: Path) -> None:
    AlarmFile(tmp_path).add([])
    assert not (tmp_path / ALARMS).exists()


def test_what_an_alarm_says_beyond_the_columns_is_not_written(tmp_path: Path) -> None:
    opened(tmp_path).add([{**alarm(20), "other": 1}])
    assert list(table(tmp_path).columns) == list(FIELDS)


def test_a_resumed_run_keeps_earlier_alarms_and_drops_later_ones(tmp_path: Path) -> None:
    opened(tmp_path).add([alarm(20), alarm(40), alarm(60)])
    file = AlarmFile(tmp_path)
    assert file.drop_from(40) == 2
    file.add([alarm(50)])
    assert table(tmp_path)["step"].tolist() == [20, 50]


def test_a_run_from_step_zero_drops_all(tmp_path: Path) -> None:
    opened(tmp_path).add([alarm(0)])
    assert AlarmFile(tmp_path).drop_from(0) == 1
    assert table(tmp_path).empty


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_half_written_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    file = opened(tmp_path)
    file.add([alarm(20), alarm(40)])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-cut])
    opened(tmp_path).add([alarm(60)])
    assert table(tmp_path)["step"].tolist() in ([20, 60], [20, 40, 60])
    assert table(tmp_path).iloc[0].to_dict() == alarm(20)
    assert table(tmp_path).iloc[-1].to_dict() == alarm(60)


@pytest.mark.parametrize("content", [b"", b"step,ep", b"\xff\xfe\x00", b"something,else\n1,2\n"])
def test_a_file_without_its_header_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ALARMS).write_bytes(content)
    opened(tmp_path).add([alarm(20)])
    assert table(tmp_path)["step"].tolist() == [20]


def test_a_killed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(tmp_path)
    file.add([alarm(20)])

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            file.add([alarm(40)])
    assert table(tmp_path)["step"].tolist() == [20]


def test_a_full_file_says_so_in_its_last_line_and_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarm_file, "MAX_ALARMS", 3)
    file = opened(tmp_path)
    file.add([alarm(20), alarm(40)])
    file.add([alarm(60)])
    assert table(tmp_path)["rule"].tolist() == ["dead_units"] * 3
    file.add([alarm(80), alarm(80)])
    file.add([alarm(100)])
    frame = table(tmp_path)
    assert frame["step"].tolist() == [20, 40, 60, 80]
    assert frame["rule"].tolist()[3] == FULL
    assert frame["sentence"][3] == "10,000 alarms are written; this one and later ones are not."


def test_a_full_file_stays_full_for_a_resumed_run_unless_the_run_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarm_file, "MAX_ALARMS", 2)
    opened(tmp_path).add([alarm(20), alarm(40), alarm(60)])
    opened(tmp_path, 80).add([alarm(80)])
    assert table(tmp_path)["step"].tolist() == [20, 40, 60]
    opened(tmp_path, 40).add([alarm(50), alarm(70)])
    assert table(tmp_path)["step"].tolist() == [20, 50, 70]
    assert table(tmp_path)["rule"].tolist() == ["dead_units", "dead_units", FULL]
