"""Costs measured earlier on this machine: one JSON file in the user's cache directory. No torch.

A figure is found again only where what it depends on is the same: processor and accelerators, threads, torch, ics-apps.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ics_apps import __version__
from ics_apps.cli.norms.cost import Cost, processor_name
from ics_apps.runs.atomic import write_text_atomically

FILE: Final = Path("ics-apps") / "norm_costs.json"
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ACCELERATORS: Final = Path("/proc/driver/nvidia/gpus")


def recall(norm: str, device: str) -> Cost | None:
    """The cost of a norm as measured here before; None if it was not, or the file is not ours to read."""
    found = _read(cache_file()).get(machine_key(device), {}).get(norm)
    try:
        return None if found is None else Cost(**{**found, "shape": tuple(found["shape"])})
    except (TypeError, KeyError):  # written by another version: measured again
        return None


def remember(cost: Cost, device: str) -> None:
    """Keep a cost for the next call.

    Raises:
        OSError: The cache directory cannot be written.
    """
    path = cache_file()
    content = _read(path)
    content.setdefault(machine_key(device), {})[cost.norm] = cost.as_dict()
    write_text_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def cache_file() -> Path:
    """Where costs are kept: under XDG_CACHE_HOME where that is an absolute path, else ~/.cache."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / FILE


def machine_key(device: str) -> str:
    """What a measured time depends on, as far as it can be told without torch."""
    threads = [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if name in os.environ]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [device, processor_name(), *_accelerators(device), f"{cpus} cpus", *threads]
    return ", ".join([*parts, f"torch {_torch_version()}", f"ics-apps {__version__}", platform.system()])


def _accelerators(device: str) -> list[str]:
    if device == "cpu":
        return []
    texts = [path.read_text() for path in sorted(_ACCELERATORS.glob("*/information"))]
    return [line.partition(":")[2].strip() for text in texts for line in text.splitlines() if line.startswith("Model")]


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The file's content; empty if there is none or it is damaged, since all of it can be measured again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or not all(isinstance(norms, dict) for norms in content.values()):
        return {}
    return content
