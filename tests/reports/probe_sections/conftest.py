"""Writes tables of probes as the callbacks do, with numbers such as a small convolutional net gives."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ics_apps.reports.probe_files import TABLES, read_probes
from ics_apps.runs import layout

Row = dict[str, Any]


def write_probes(run: Path, tables: Mapping[str, Sequence[Row]]) -> Path:
    """Write rows as a probe's callback does: a missing column is an empty cell."""
    folder = run / layout.PROBES
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("step", *TABLES[name].columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def probe_rows(layers: Sequence[str], steps: Sequence[int]) -> dict[str, list[Row]]:
    """Every table, of layers in forward order; shifts fall with time and rise with depth."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[Row]] = {name: [] for name in TABLES}
    for step in steps:
        time = step / max(steps[-1], 1)
        for order, layer in enumerate(layers):
            depth = order / max(len(layers) - 1, 1)
            _layer_rows(rows, {"step": step, "layer": layer, "order": order}, time, depth, generator)
        _landscape_rows(rows["landscape"], step, time)
        _hessian_rows(rows, step, time, generator)
        for share in np.arange(9) / 9:
            mean = 1.5 + time - (0.4 + 1.8 * time) * share
            rows["batch_composition"].append(
                {"step": step, "share": share, "mean": mean, "std": 0.15 * share + 0.02, "count": 8}
            )
    return rows


def _layer_rows(rows: dict[str, list[Row]], key: Row, time: float, depth: float, generator: Any) -> None:
    noise = math.exp(0.2 * generator.normal())
    first, step = key["order"] == 0, key["step"]
    shift = 0.0 if first else (0.02 + 0.4 * depth) * (1.1 - time) * noise
    size = 0.3 * 10 ** (-1.2 * (1 - depth) - 0.5 * time)
    rows["ics"].append(
        {**key, "grad_norm": size, "shift": shift * size, "relative_shift": shift, "cosine": 1 - shift**2 / 2}
    )
    moved = time * (0.1 + depth) * noise
    rows["input_drift"].append(
        {**key, "mean": moved, "std": 1 + moved, "q15": moved - 1, "q50": moved, "q85": moved + 1}
        | ({"drift_w1": 0.03 * noise, "reference_w1": moved} if step else {})
    )
    rows["conditioning"].append(
        {**key, "features": 16 * 2 ** (key["order"] % 3), "condition": 10 ** (1.5 + 3 * depth - time) * noise,
         "effective_rank": 3.7 + 5 * time, "damping": 1e-3 * noise}
    )  # fmt: skip
    rows["gradient_flow"].append({**key, "grad_norm": size, "snr": 2.5 * noise * (1 - 0.8 * time)})
    if step == 0:
        mixes = ".norm" in key["layer"]
        ratio = 0.0 if not mixes else 0.071 + 0.01 * depth
        rows["leakage"].append(
            {"step": 0, "module": key["layer"], "order": key["order"], "ratio": ratio, "is_source": mixes,
             "allowed": "deep" in key["layer"]}
        )  # fmt: skip
    if ".conv" in key["layer"]:
        rows["scale_invariance"].append(
            {"step": step, "layer": f"{key['layer']}.weight", "norm": 4 + time, "effective_lr": 1e-3 / (4 + time) ** 2,
             "rotation": (0.009 - 0.005 * time) * noise, "expected_rotation": 0.00447, "weight_decay": 0.01}
        )  # fmt: skip


def _landscape_rows(rows: list[Row], step: int, time: float) -> None:
    loss = 0.2 + 2 * math.exp(-4 * time)
    rows.append({"step": step, "lr_multiple": 0.0, "step_size": 0.0, "loss": loss, "gradient_change": 0.0})
    for multiple in np.linspace(0.5, 4, 8):
        change = 0.3 * multiple * (1.2 - time)
        rows.append(
            {"step": step, "lr_multiple": multiple, "step_size": 0.05 * multiple,
             "loss": loss - 0.02 * multiple + 0.02 * multiple**2 * (1.1 - time), "gradient_change": change,
             "smoothness": change / (0.05 * multiple * 0.4) * (1 + 0.1 * multiple)}
        )  # fmt: skip


def _hessian_rows(rows: dict[str, list[Row]], step: int, time: float, generator: Any) -> None:
    top = 12 + 160 * time
    low = -3 - 2 * time + 0.3 * generator.normal()
    rows["hessian"].append(
        {"step": step, "lambda_max": top, "lambda_max_bound": 0.001 * top, "lambda_min": low, "lambda_min_bound": 0.4,
         "lambda_min_converged": time > 0.5, "lambda_ratio": 3.2, "trace": 4 * top, "trace_error": 0.2 * top,
         "negative_mass": 0.08, "effective_rank": 6.3, "damped_condition": 1001.0, "damping": 1e-3 * top,
         "products": 48, "sharpness_limit": 200.0}
    )  # fmt: skip
    grid = np.linspace(low - 2, top + 2, 201)
    width = 0.01 * (top - low)
    peaks = ((0.9, 0.0, width), (0.06, low, width), (0.03, top / 4, width), (0.01, top, width))
    density = sum(w * np.exp(-(((grid - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for w, m, s in peaks)
    rows["spectral_density"] += [
        {"step": step, "eigenvalue": x, "density": y} for x, y in zip(grid, density, strict=True)
    ]


@pytest.fixture(scope="session")
def layers() -> list[str]:
    """Names of twelve layers in forward order."""
    return [
        f"net.{part}.{block}.{kind}" for part in ("encoder", "deep") for block in range(3) for kind in ("conv", "norm")
    ]


@pytest.fixture(scope="session")
def tables(layers: list[str]) -> dict[str, list[Row]]:
    """Rows of every table, measured five times."""
    return probe_rows(layers, range(0, 1000, 200))


@pytest.fixture
def table_of(tmp_path: Path) -> Callable[..., Any]:
    """Write rows of one table, and read them as the page does."""

    def read(name: str, rows: Sequence[Row]) -> Any:
        problems: list[str] = []
        tables = read_probes(write_probes(tmp_path / "one", {name: rows}), problems)
        assert problems == []
        assert tables is not None
        return tables[name]

    return read


@pytest.fixture(scope="session")
def save_probes() -> Callable[..., Path]:
    """`write_probes`."""
    return write_probes


@pytest.fixture(scope="session")
def probe_rows_of() -> Callable[..., dict[str, list[Row]]]:
    """`probe_rows`."""
    return probe_rows
