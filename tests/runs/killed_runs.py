"""Start runs in processes that can be stopped at any moment, without paying for the imports each time.

A fork server imports torch, Lightning and the command line once; each run is a fork of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

TINY = Path(__file__).with_name("tiny.yaml")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["ics_apps.cli.training", "ics_apps.tasks.segmentation", "ics_apps.tasks.segmentation.data", "scipy.ndimage"]
)


def start(arguments: Sequence[str], log: Path) -> BaseProcess:
    """Start `ics-apps ARGUMENTS` in a process of its own, its output going to `log`."""
    process = _CONTEXT.Process(target=_child, args=(list(arguments), str(log)))
    process.start()
    return process


def finish(arguments: Sequence[str], log: Path, timeout: float = 120) -> int:
    """Run to the end; returns the exit code."""
    process = start(arguments, log)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"ics-apps {' '.join(arguments)} did not end; its output:\n{log.read_text()}")
    return process.exitcode


def stop_when(process: BaseProcess, condition: object, signal_number: int, timeout: float = 60) -> int:
    """Send a signal once `condition()` is true (at once where the process has ended); returns the exit code."""
    deadline = time.monotonic() + timeout
    while process.is_alive() and not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.002)
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal_number)
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        raise TimeoutError(f"the process did not end after {signal.Signals(signal_number).name}")
    return code


def _child(arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.path.isdir("/dev/shm"):  # noqa: PTH112, S108 - a temporary folder on another file system, as clusters have
        os.environ["TMPDIR"] = "/dev/shm"  # noqa: S108
    import torch

    torch.set_num_threads(1)
    from ics_apps.cli import main

    code = 1
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
