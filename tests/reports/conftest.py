"""Writes run directories as a run does, with numbers that the tests know."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ics_apps.reports import write_report
from ics_apps.runs import layout

MakeRun = Callable[..., Path]

CONFIG = """\
seed_everything: 0
model:
  class_path: ics_apps.tasks.segmentation.SegmentationTask
  init_args:
    norm: {name: group, groups: 8}
trainer:
  max_epochs: 10
  logger:
    class_path: lightning.pytorch.loggers.WandbLogger
    init_args:
      api_key: s3cr3t-value
      project: membranes
"""

RECORD: dict[str, Any] = {
    "recipe": "segmentation/base",
    "command": ["ics-apps", "run", "segmentation/base", "--api_key", "s3cr3t-value"],
    "status": "finished",
    "started": "2026-11-24T13:00:00.123",
    "finished": "2026-11-24T13:01:01",
    "seconds": 61.0,
    "seed": 0,
    "versions": {"python": "3.11.2", "torch": "2.14.1"},
    "git": {"commit": "abc123", "dirty": True},
    "machine": {"cpus": 2, "device": "cpu", "platform": "Linux"},
    "precision": "fp32 channels_last",
    "notes": ["Split by split.csv: 24 train, 6 validation."],
    "resumed": [],
}


def png(width: int, height: int, pixel: Callable[[int, int], int]) -> bytes:
    """A grey 8-bit PNG whose pixel (column, row) is given by a function."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    rows = b"".join(b"\0" + bytes(pixel(x, y) & 255 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def unet_layers(levels: int) -> list[tuple[str, str, str]]:
    """(name, kind, type) of a U-Net's layers in forward order; each decoder level joins two streams."""
    block = [("conv1", "conv", "Conv2d"), ("norm1", "norm", "GroupNorm"), ("act1", "activation", "ReLU"),
             ("conv2", "conv", "Conv2d"), ("norm2", "norm", "GroupNorm"), ("act2", "activation", "ReLU")]  # fmt: skip
    streams = [("concat.skip", "stream", "GroupNorm"), ("concat.up", "stream", "GroupNorm")]
    layers = [(f"net.encoder.{level}.{name}", kind, type_) for level in range(levels) for name, kind, type_ in block]
    layers += [(f"net.bottleneck.{name}", kind, type_) for name, kind, type_ in block]
    for level in range(levels):
        layers += [(f"net.decoder.{level}.{name}", kind, type_) for name, kind, type_ in streams + block]
    return layers


def monitor_row(step: int, place: int, name: str, kind: str, type_: str, **given: Any) -> dict[str, Any]:
    """One row of the monitor: drift falls like 1 / step and grows with depth, RMS is 1 after norms."""
    activation = kind == "activation"
    row = {
        "step": step, "epoch": step // 100, "layer": name, "call": 0, "kind": kind, "type": type_, "order": place,
        "count": 4096, "mean": 0.0, "std": 1.0, "rms": 1.0 if kind == "norm" else 0.5 + 0.05 * place,
        "min": -3.0, "max": 3.0, "q15": -1.0, "q50": 0.0, "q85": 1.0,
        "zero_fraction": 0.5 - 0.003 * place if activation else math.nan,
        "saturated_fraction": 0.01 if activation else math.nan, "nonfinite_count": 0, "channels": 16,
        "dead_channels": 0 if activation else -1,
        "drift_kl": (1 + place / 8) * 2 / (step + 20) if step else math.nan,
        "drift_w1": (1 + place / 8) * (1.3 + math.sin(0.07 * step + place)) * 5 / (step + 20) if step else math.nan,
        "running_gap": math.nan,
    }  # fmt: skip
    if name.endswith("concat.skip"):
        row["rms"] = 2.0 + 0.001 * step
    elif name.endswith("concat.up"):
        row["rms"] = 1.0 + 0.2 * place / 10
    return {**row, **given}


def write_monitor(folder: Path, rows: Sequence[dict[str, Any]], file: str = "0.parquet") -> None:
    """Write monitor rows with the types of the contract."""
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame(list(rows))
    small = {"epoch": "int32", "call": "int16", "order": "int32", "channels": "int32", "dead_channels": "int32"}
    floats = {name: "float32" for name in table.columns if table[name].dtype == "float64"}
    table.astype({**small, **floats}).to_parquet(folder / file)


def build_run(
    root: Path,
    name: str = "unet-group",
    *,
    steps: int = 400,
    every: int = 20,
    levels: int = 2,
    layers: Sequence[tuple[str, str, str]] | None = None,
    cases: int = 3,
    size: int = 24,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
    record: dict[str, Any] | None = None,
) -> Path:
    """Write a finished run with every kind of file.

    `every` is the distance of monitor samples, `layers` replace the U-Net's, `cases` have panels of `size` pixels,
    `change` edits each monitor row, `record` overrides keys of run.json.
    """
    run = root / name
    run.mkdir()
    (run / layout.CONFIG).write_text(CONFIG, encoding="utf-8")
    (run / layout.RECORD).write_text(json.dumps({**RECORD, **(record or {})}), encoding="utf-8")
    _write_metrics(run, steps)
    sampled = [
        change(monitor_row(step, place, *layer))
        for step in range(0, steps, every)
        for place, layer in enumerate(unet_layers(levels) if layers is None else layers)
    ]
    write_monitor(run / layout.MONITOR, sampled)
    _write_panels(run / layout.PANELS, cases, size)
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`build_run` in the test's own folder."""
    return partial(build_run, tmp_path)


@pytest.fixture(scope="session")
def finished_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a finished run, for tests that only read it."""
    return write_report(build_run(tmp_path_factory.mktemp("finished"))).read_text(encoding="utf-8")


@pytest.fixture
def rows_of() -> Callable[..., dict[str, Any]]:
    """`monitor_row`, to write monitor files by hand."""
    return monitor_row


@pytest.fixture
def save_monitor() -> Callable[..., None]:
    """`write_monitor`."""
    return write_monitor


def _write_metrics(run: Path, steps: int) -> None:
    """The validation Dice rises from 0.61 to 0.80 and is best (0.82) at four fifths of the run."""
    lines = ["step,epoch,train/loss,val/loss,val/dice,val/dice/membrane,lr"]
    best = steps * 4 // 5
    for step in range(steps // 40, steps + 1, steps // 40):
        lines.append(f"{step},{step // 100},{0.2 + math.exp(-step / 90) + 0.03 * math.sin(step)},,,,")
        lines.append(f"{step},{step // 100},,,,,{0.001 * (1 + math.cos(math.pi * step / steps)) / 2}")
        if step % (steps // 10) == 0:
            done = (step - steps // 10) / (steps - steps // 10)
            dice = 0.82 if step == best else 0.61 + 0.19 * done
            lines.append(f"{step},{step // 100},,{0.9 - 0.6 * done},{dice},{dice - 0.03},")
    (run / layout.METRICS_TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = {"test/loss": 0.31, "test/dice/membrane": 0.77, "test/dice": 0.81, "test/hd95": 12.25}
    (run / layout.METRICS_SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


def _write_panels(folder: Path, cases: int, size: int) -> None:
    """Case k has Dice 0.9 - 0.1 k, so that the last case is the worst."""
    folder.mkdir()
    index = []
    for case in range(cases):
        images = []
        for shade, title in enumerate(("image", "truth", "prediction", "errors")):
            file = f"{case}.{title}.png"
            (folder / file).write_bytes(png(size, size, lambda x, y, s=shade, c=case: (x * y * (s + 1) >> 3) + 40 * c))
            images.append({"title": title, "file": file})
        scores = {"dice": round(0.9 - 0.1 * case, 2), "hd95": 5.0 + case}
        index.append({"case": f"slice-{case}", "stage": "test", "scores": scores, "images": images})
    (folder / layout.PANELS_INDEX).write_text(json.dumps(index), encoding="utf-8")
