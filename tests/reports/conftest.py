"""Writes run directories as a run does, with numbers that the tests know."""

from __future__ import annotations

import csv
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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


EDGES = np.sinh(np.linspace(-math.asinh(1000), math.asinh(1000), 65))
ALARMS: list[dict[str, Any]] = [
    {"step": 120, "epoch": 1, "rule": "saturated", "layer": "net.decoder.1.act2", "value": 0.31, "threshold": 0.25,
     "sentence": "net.decoder.1.act2 had 31 % of its values where tanh is flat at 3 samples in a row.",
     "remedy": "Put a norm before it, or lower the learning rate."},
    {"step": 180, "epoch": 1, "rule": "dead_units", "layer": "net.encoder.0.act2", "value": 0.5, "threshold": 0.4,
     "sentence": "8 of 16 channels of net.encoder.0.act2 were zero for every input.",
     "remedy": "Lower the learning rate, or use a leaky activation."},
    {"step": 220, "epoch": 2, "rule": "dead_units", "layer": "net.encoder.1.act2", "value": 0.5, "threshold": 0.4,
     "sentence": "7 of 16 channels of net.encoder.1.act2 were zero for every input.",
     "remedy": "Lower the learning rate, or use a leaky activation."},
    {"step": 220, "epoch": 2, "rule": "drift_spike", "layer": "net.decoder.0.norm1", "value": 3.1, "threshold": 0.4,
     "sentence": "net.decoder.0.norm1 moved by 3.1 standard deviations between two samples.",
     "remedy": "Look at the batches and the learning rate at this step."},
]  # fmt: skip


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


def watched_rows(
    layers: Sequence[tuple[str, str, str]], steps: Sequence[int], seed: int = 0, speed: float = 1.0, size: int = 1024
) -> list[dict[str, Any]]:
    """Rows of every layer at every step: outputs are Gaussian, their mean and spread grow with depth and time.

    ReLU outputs lose their positive half where the encoder dies, tanh outputs saturate as the spread grows.
    `speed` scales the drift; `size` values are drawn of each output.
    """
    generator = np.random.default_rng(seed)
    first: dict[str, np.ndarray] = {}
    before: dict[str, np.ndarray] = {}
    rows = []
    for step in steps:
        for order, (name, kind, type_) in enumerate(layers):
            depth, time = order / max(len(layers) - 1, 1), step / max(steps[-1], 1)
            moved = speed * time * (0.2 + depth)
            values = generator.normal(moved, 1 + 0.6 * moved, size)
            if kind == "activation":
                dying = "encoder" in name and name.endswith("act2")
                values = np.tanh(2 * values) if type_ == "Tanh" else np.maximum(values - (3 * time if dying else 0), 0)
            row = _row(step, order, name, kind, type_, values)
            for prefix, other in (("drift", before.get(name)), ("reference", first.get(name))):
                row |= _distance(prefix, values, other)
            first.setdefault(name, values)
            before[name] = values
            row |= _histogram(values, first[name]) | _parameters(kind, step, depth, generator)
            rows.append(row)
    return rows


def write_watched(
    run: Path, rows: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]] | None = ALARMS,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
) -> None:  # fmt: skip
    """Write rows with the types of the contract, and the alarms beside them (None: nobody watched)."""
    folder = run / layout.MONITOR
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    table = pd.DataFrame([change(row) for row in rows])
    counts = table.pop("histogram") if "histogram" in table else None
    small = {"epoch": "int32", "call": "int16", "order": "int32", "channels": "int32", "dead_channels": "int32"}
    floats = {name: "float32" for name in table.columns if table[name].dtype == "float64"}
    written = pa.Table.from_pandas(table.astype({**small, **floats}), preserve_index=False)
    if counts is not None:
        flat = pa.array(np.concatenate(counts.to_list()).astype(np.uint16))
        written = written.append_column("histogram", pa.FixedSizeListArray.from_arrays(flat, 66))
    pq.write_table(written, folder / "0.parquet")
    if alarms is not None:
        with (folder / layout.ALARMS).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ALARMS[0]))
            writer.writeheader()
            writer.writerows(alarms)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`build_run` in the test's own folder."""
    return partial(build_run, tmp_path)


@pytest.fixture(scope="session")
def finished_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a finished run, for tests that only read it."""
    run = build_run(tmp_path_factory.mktemp("finished"), every=10_000)
    layers = [(name, kind, "Tanh" if name.endswith("1.act2") else type_) for name, kind, type_ in unet_layers(2)]
    write_watched(run, watched_rows(layers, range(0, 400, 40), size=256))
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture
def make_watched(make_run: MakeRun) -> MakeRun:
    """A run of `build_run` with what the present monitor writes: (name, layers=, steps=, alarms=, change=, speed=)."""

    def make(
        name: str = "watched",
        *,
        layers: Any = None,
        steps: Sequence[int] = range(0, 400, 40),
        alarms: Any = ALARMS,
        change: Any = lambda row: row,
        speed: float = 1.0,
        **given: Any,
    ) -> Path:
        run = make_run(name, every=10_000, **given)
        layers = unet_layers(2) if layers is None else layers
        write_watched(run, watched_rows(layers, steps, speed=speed, size=256), alarms, change)
        return run

    return make


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


def _row(step: int, order: int, name: str, kind: str, type_: str, values: np.ndarray) -> dict[str, Any]:
    activation = kind == "activation"
    zero = float((values == 0).mean()) if type_ == "ReLU" else math.nan
    low, middle, high = np.quantile(values, [0.15, 0.5, 0.85])
    return {
        "step": step, "epoch": step // 100, "layer": name, "tag": "", "call": 0, "kind": kind, "type": type_,
        "order": order, "count": len(values), "nonfinite_count": 0, "channels": 16,
        "dead_channels": int(16 * max(0.0, 2 * zero - 1.2)) if activation and not math.isnan(zero) else -1,
        "mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max(),
        "rms": math.sqrt((values**2).mean()),
        "q15": low, "q50": middle, "q85": high, "zero_fraction": zero,
        "saturated_fraction": float((np.abs(values) > 0.99).mean()) if type_ == "Tanh" else math.nan,
    }  # fmt: skip


def _distance(prefix: str, values: np.ndarray, other: np.ndarray | None) -> dict[str, float]:
    if other is None:
        return {f"{prefix}_w1": math.nan, f"{prefix}_kl": math.nan}
    spread = max(other.std(), 1e-12)
    gap = float(np.abs(np.sort(values) - np.sort(other)).mean() / spread)
    return {f"{prefix}_w1": gap, f"{prefix}_kl": gap**2}


def _histogram(values: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    centre, scale = float(np.median(first)), float(first.std())
    edges = np.concatenate([[-np.inf], np.float32(centre) + np.float32(scale) * EDGES, [np.inf]])
    return {"hist_center": centre, "hist_scale": scale, "histogram": np.histogram(values, edges)[0]}


def _parameters(kind: str, step: int, depth: float, generator: np.random.Generator) -> dict[str, float]:
    weights = kind in ("conv", "norm")
    noise = math.exp(0.2 * generator.normal())
    return {
        "grad_rms": 1e-4 * 10 ** (1.5 * depth - step / 2000) * noise,
        "grad_zero_fraction": 0.0,
        "weight_norm": 5 + 0.002 * step if weights else math.nan,
        "update_ratio": 2e-3 * 10 ** (-step / 800) * noise if weights and step else math.nan,
        "effective_lr": 1e-3 / (5 + 0.002 * step) ** 2 if kind == "conv" else math.nan,
        "batch_noise": 0.02 * noise if kind == "norm" else math.nan,
        "running_gap": 0.1 * noise if kind == "norm" else math.nan,
        "running_var_gap": 0.05 * noise if kind == "norm" else math.nan,
    }
