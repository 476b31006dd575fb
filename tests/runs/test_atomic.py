from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

import pytest

from ics_apps.runs.atomic import sweep_parts, write_atomically, write_text_atomically


def test_text_reaches_the_file_and_missing_folders_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    write_text_atomically(target, "käse\n")
    assert target.read_bytes() == "käse\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["b.txt"]


def test_a_failure_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_atomically(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_a_full_disk_is_told_with_path_and_free_bytes(tmp_path: Path) -> None:
    def fill(_file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"could not write .*a\.txt: No space left.*; [\d,]+ bytes are free there"
    ) as caught:
        write_atomically(tmp_path / "a.txt", fill)
    assert caught.value.errno == errno.ENOSPC


def test_sweeping_removes_only_what_a_killed_write_left(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.part").write_bytes(b"half")
    (tmp_path / "last.ckpt").write_bytes(b"whole")
    assert [path.name for path in sweep_parts(tmp_path)] == [".last.ckpt.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
