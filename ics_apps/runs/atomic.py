"""Write a file whole or not at all: a temporary file in the same folder, flushed to disk, then renamed.

The temporary file must share the target's folder: a rename across file systems is a copy, and a process killed in the
middle of a copy leaves half a file under the good name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

PART_SUFFIX: Final = ".part"


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` with an open temporary file, then put that file in place of `path`.

    Args:
        path: The final name. Its folder is created when missing.
        write: Writes the whole content into the binary file it is given.

    Raises:
        OSError: The disk is full or not writable; the message names the path and the free bytes. `path` is untouched.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(target, lambda file: None if file.write(b"whole") else None)
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{PART_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, _failure(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Put `text` (UTF-8) in place of `path`, whole or not at all."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Put `content` in place of `path`, whole or not at all."""

    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_atomically(path, write)


def sweep_parts(folder: Path) -> list[Path]:
    """Remove temporary files that a killed process left in `folder`; returns what was removed."""
    parts = sorted(folder.glob(f".*{PART_SUFFIX}"))
    for part in parts:
        part.unlink(missing_ok=True)
    return parts


def _failure(path: Path, error: OSError) -> str:
    stats = os.statvfs(path.parent)
    free = stats.f_bavail * stats.f_frsize
    return (
        f"could not write {path}: {error.strerror}; {free:,} bytes are free there. The file from before is unchanged."
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
