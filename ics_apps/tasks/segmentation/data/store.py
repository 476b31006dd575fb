"""Arrays of prepared cases in a folder on disk, memory-mapped, so that volumes larger than the memory can be cut from.

A file is named by what it was made from: path, size and time of change of the source files, and the options. A file
is written under another name and then renamed, so that a second process sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ArrayStore:
    """Arrays by name, at most so many bytes of them.

    Args:
        folder: Made at the first write.
        limit: Largest total of bytes; an array that would exceed it is made anew at each use.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ArrayStore(Path(folder), limit=10_000)
        ...     once = store.array("ones", lambda: np.ones(3))
        ...     again = store.array("ones", lambda: np.zeros(3))
        ...     again.tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of this name, read-only and mapped; made and kept if there is none.

        Args:
            name: Of `array_name`.
            make: Gives the array.
        """
        path = self.folder / f"{name}.npy"
        try:
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # none yet, or one that a full disk cut short
            return self._keep(path, make())
        return mapped

    def _keep(self, path: Path, values: NDArray[Any]) -> NDArray[Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        used = sum(file.stat().st_size for file in self.folder.glob("*.npy") if file != path)
        if used + values.nbytes > self.limit:
            return values
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.save(stream, np.ascontiguousarray(values), allow_pickle=False)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped


def array_name(files: Sequence[Path], options: str) -> str:
    """A name that changes with the files (path, size, time of change) and with the options.

    Args:
        files: What the array is made from; a folder stands for the files in it.
        options: How it is made.
    """
    digest = hashlib.sha256(options.encode())
    for path in files:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            state = file.stat()
            digest.update(f"\n{file.resolve()}\t{state.st_size}\t{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
