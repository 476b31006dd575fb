"""Run a test file as two processes that form a gloo group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def results_of_two_ranks(script: str, folder: Path) -> list[Any]:
    """What `script RANK RENDEZVOUS FOLDER` saves as `FOLDER/RANK.pt` on rank 0 and on rank 1."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", script]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder / "rendezvous"), str(folder)], env=environment,
                         stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        # A rank that waits for one which takes no part waits for ever.
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
