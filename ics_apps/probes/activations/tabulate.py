"""Turns the readings of one step into one table, and remembers what the next step is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.channels import ChannelStreaks
from ics_apps.probes.activations.columns import BINS, COLUMNS, HISTOGRAM, Key, Table
from ics_apps.probes.activations.drift import History
from ics_apps.probes.activations.histogram import Histograms
from ics_apps.probes.activations.moments import NO_BOUNDS, describe
from ics_apps.probes.activations.records import SATURATED_INPUT, Record
from ics_apps.probes.activations.saturation import Tails
from ics_apps.probes.selection import Layer

Float64 = NDArray[np.float64]

BLOCK: Final = 32  # records described together: enough for fast array code, few enough to stay in the cache
_NORM_FIGURES: Final = ("running_gap", "running_var_gap", "batch_noise")
_OF_CHANNELS: Final = ("activation", "stream", "conv", "linear")  # a norm with gamma near 0 is constant, and healthy


class Tabulator:
    """Makes a table of each step's records; drift, histograms and silent channels go on from step to step.

    Args:
        layers: the watched layers.
        tails: where each layer saturates, None where that is not defined.
    """

    def __init__(self, layers: Sequence[Layer], tails: Sequence[Tails | None]) -> None:
        self._layers = layers
        self._tails = tails
        self._history = History()
        self._histograms = Histograms()
        self._streaks = ChannelStreaks()
        self._order: dict[str, int] = {}

    def table(self, records: Sequence[Record], weights: Mapping[str, Float64], grad_scale: float = 1.0) -> Table:
        """The table of one step.

        Args:
            records: one for each (layer, tag, call), in the order of the forwards.
            weights: figures of each layer's parameters, `(layers,)` each.
            grad_scale: what the loss was multiplied by (AMP).

        Returns:
            One array for each of `COLUMNS`.
        """
        if not records:
            return {name: np.empty(_shape(name, 0), dtype) for name, dtype in COLUMNS.items()}
        layers = [self._layers[record.index] for record in records]
        keys: list[Key] = [(layer.name, r.tag, r.call) for layer, r in zip(layers, records, strict=True)]
        for layer in layers:
            self._order.setdefault(layer.name, len(self._order))
        parts = [
            self._figures(keys[first : first + BLOCK], layers[first : first + BLOCK], records[first : first + BLOCK])
            for first in range(0, len(records), BLOCK)
        ]
        figures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        drift = self._history.advance(keys, figures.pop("grid"), figures["mean"], figures["std"])
        index = np.array([record.index for record in records])
        first = {record.index: row for row, record in reversed(list(enumerate(records)))}
        is_first = np.array([first[record.index] == row for row, record in enumerate(records)])
        values: dict[str, Any] = {
            "layer": [layer.name for layer in layers],
            "tag": [record.tag for record in records],
            "call": [record.call for record in records],
            "kind": [layer.kind for layer in layers],
            "type": [layer.type for layer in layers],
            "dtype": [record.dtype for record in records],
            "order": [self._order[layer.name] for layer in layers],
            "numel": [record.numel for record in records],
            "channels": [record.channels for record in records],
            **figures,
            **drift,
            **{name: [record.scalars.get(name, np.nan) for record in records] for name in _NORM_FIGURES},
            # The weights of a layer that ran several times are told once.
            **{name: np.where(is_first, figure[index], np.nan) for name, figure in weights.items()},
            **_of_gradients(records, grad_scale),
        }
        with np.errstate(over="ignore", invalid="ignore"):
            return {name: np.asarray(values[name]).astype(dtype) for name, dtype in COLUMNS.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, loads under `weights_only=True`."""
        return {
            "history": self._history.state_dict(),
            "histograms": self._histograms.state_dict(),
            "streaks": self._streaks.state_dict(),
            "order": dict(self._order),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; layers that this model does not have are kept but not used."""
        self._history.load_state_dict(state["history"])
        self._histograms.load_state_dict(state["histograms"])
        self._streaks.load_state_dict(state["streaks"])
        self._order = dict(state["order"])

    def _figures(
        self, keys: Sequence[Key], layers: Sequence[Layer], records: Sequence[Record]
    ) -> dict[str, NDArray[Any]]:
        """What the values of a few records tell."""
        found = describe(_matrix(records), np.array([self._bounds(record) for record in records]))
        figures = found.figures
        histogram, center, scale = self._histograms.count(
            keys, found.ordered, found.kept, figures["q50"], figures["std"]
        )
        dead, constant = self._channels(keys, layers, records)
        count = np.array([len(record.values) for record in records])
        return {
            **figures,
            "saturated_fraction": self._saturated(records, figures),
            "count": count,
            "nonfinite_count": count - found.kept,
            "dead_channels": dead,
            "constant_channels": constant,
            "grid": found.grid,
            "hist_center": center,
            "hist_scale": scale,
            HISTOGRAM: histogram,
        }

    def _bounds(self, record: Record) -> tuple[float, float]:
        tails = self._tails[record.index]
        return (tails.low, tails.high) if tails is not None and tails.side == "output" else NO_BOUNDS

    def _saturated(self, records: Sequence[Record], figures: Mapping[str, Float64]) -> Float64:
        """The share on the output, or on the input where that is what tells; NaN where it is not defined."""
        on_input = np.array([record.scalars.get(SATURATED_INPUT, np.nan) for record in records])
        sides = [tails.side if (tails := self._tails[record.index]) is not None else "" for record in records]
        of_input, of_output = np.array([side == "input" for side in sides]), np.array([s == "output" for s in sides])
        return np.where(of_output, figures["saturated_fraction"], np.where(of_input, on_input, np.nan))

    def _channels(
        self, keys: Sequence[Key], layers: Sequence[Layer], records: Sequence[Record]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dead and constant channels of each record, -1 where they are not known."""
        dead, constant = np.full(len(keys), -1), np.full(len(keys), -1)
        known: list[int] = []
        found: list[tuple[NDArray[np.float32], NDArray[np.integer[Any]]]] = []
        for row, (layer, record) in enumerate(zip(layers, records, strict=True)):
            if record.channel is not None and layer.kind in _OF_CHANNELS and record.channels <= len(record.values):
                known.append(row)
                found.append((record.values, record.channel))
        of_keys = self._streaks.update(
            [keys[row] for row in known],
            [values for values, _ in found],
            [channel for _, channel in found],
            [records[row].channels for row in known],
        )
        dead[known], constant[known] = of_keys
        # A convolution may well give zeros; what an activation or stream does not pass on is lost.
        dead[[layer.kind not in ("activation", "stream") for layer in layers]] = -1
        return dead, constant


def _matrix(records: Sequence[Record]) -> NDArray[np.float32]:
    """The samples as rows, filled up with NaN."""
    longest = max(len(record.values) for record in records)
    matrix = np.full((len(records), longest), np.nan, np.float32)
    for row, record in zip(matrix, records, strict=True):
        row[: len(record.values)] = record.values
    return matrix


def _of_gradients(records: Sequence[Record], scale: float) -> dict[str, Float64]:
    """RMS and share of zeros of each gradient sample; NaN without a gradient, or where a scaled one overflowed."""
    rms, zeros = np.full(len(records), np.nan), np.full(len(records), np.nan)
    for row, record in enumerate(records):
        number = len(record.gradient)
        if number:
            gradient = record.gradient.astype(np.float64)
            rms[row] = np.sqrt(gradient @ gradient / number) / scale
            zeros[row] = np.count_nonzero(gradient == 0) / number
    if scale != 1.0:
        rms[~np.isfinite(rms)] = np.nan
    return {"grad_rms": rms, "grad_zero_fraction": zeros}


def _shape(name: str, rows: int) -> tuple[int, ...]:
    return (rows, BINS + 2) if name == HISTOGRAM else (rows,)
