"""What the rules remember of each (layer, tag, call): about 350 bytes a key, in arrays over all keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.columns import Key, Table

WINDOW: Final = 32  # samples that a layer's own history spans
EARLY: Final = 10  # samples whose largest gradient is the measure of a usual one

# Name: dtype, value before the first sample.
_SCALARS: Final[dict[str, tuple[str, float]]] = {
    "age": ("int64", 0),  # samples seen
    "first_step": ("int64", -1),
    "first_rms": ("float64", np.nan),  # of the first finite sample
    "least_gap": ("float64", np.nan),
    "least_var_gap": ("float64", np.nan),
    "early_gradient": ("float64", 0),  # largest norm among the first samples
    "had_weight": ("bool", 0),  # its weight norm has been finite
}
_WINDOWS: Final = ("drifts", "gradients")  # float32 (keys, WINDOW), NaN where empty


class Memory:
    """Arrays over keys that grow as keys appear.

    Example:
        >>> memory = Memory()
        >>> memory.find([("conv", "", 0), ("act", "", 0)]).tolist(), memory.find([("act", "", 0)]).tolist()
        ([0, 1], [1])
    """

    age: NDArray[np.int64]
    first_step: NDArray[np.int64]
    first_rms: NDArray[np.float64]
    least_gap: NDArray[np.float64]
    least_var_gap: NDArray[np.float64]
    early_gradient: NDArray[np.float64]
    had_weight: NDArray[np.bool_]
    drifts: NDArray[np.float32]
    gradients: NDArray[np.float32]

    def __init__(self) -> None:
        self.keys: dict[Key, int] = {}
        for name, array in _blank(0).items():
            setattr(self, name, array)

    def find(self, keys: Sequence[Key]) -> NDArray[np.intp]:
        """The place of each key; unknown keys get one."""
        known = self.keys
        slots = np.array([known.setdefault(key, len(known)) for key in keys], np.intp)
        new = len(known) - len(self.age)
        if new:
            for name, array in _blank(new).items():
                setattr(self, name, np.concatenate((getattr(self, name), array)))
        return slots

    def meet(self, slots: NDArray[np.intp], table: Table, step: int) -> None:
        """Note what the first sample of a key is, before it is judged."""
        first = self.first_step[slots]
        self.first_step[slots] = np.where(first < 0, step, first)
        rms, before = table["rms"].astype(np.float64), self.first_rms[slots]
        self.first_rms[slots] = np.where(np.isnan(before) & np.isfinite(rms), rms, before)

    def remember(self, slots: NDArray[np.intp], figures: Mapping[str, NDArray[Any]]) -> None:
        """Take in a sample after it was judged.

        Args:
            slots: place of each row.
            figures: `running_gap`, `running_var_gap`, `drift_w1`, `weight_norm`, `gradient` (norm), `(R,)` each.
        """
        age = self.age[slots]
        self.least_gap[slots] = np.fmin(self.least_gap[slots], figures["running_gap"])
        self.least_var_gap[slots] = np.fmin(self.least_var_gap[slots], figures["running_var_gap"])
        self.drifts[slots, age % WINDOW] = _finite(figures["drift_w1"])
        gradient = _finite(figures["gradient"])
        self.gradients[slots, age % WINDOW] = gradient
        early = self.early_gradient[slots]
        self.early_gradient[slots] = np.where(age < EARLY, np.fmax(early, gradient), early)
        self.had_weight[slots] |= np.isfinite(figures["weight_norm"])
        self.age[slots] = age + 1

    def state_dict(self) -> dict[str, Any]:
        """Lists of plain numbers."""
        arrays = {name: getattr(self, name).tolist() for name in (*_SCALARS, *_WINDOWS)}
        return {"keys": [list(key) for key in self.keys], **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.keys = {(layer, tag, call): slot for slot, (layer, tag, call) in enumerate(state["keys"])}
        for name, array in _blank(len(self.keys)).items():
            setattr(self, name, np.array(state[name], array.dtype).reshape(array.shape))


def medians(windows: NDArray[Any]) -> NDArray[np.float64]:
    """Median of each row without its NaN, NaN for an empty row; np.nanmedian takes twenty times as long.

    Example:
        >>> medians(np.array([[3, np.nan, 1, 2], [np.nan, 4, np.nan, 1], [np.nan] * 4])).tolist()
        [2.0, 2.5, nan]
    """
    ordered = np.sort(windows, axis=1)  # NaN last
    count = (~np.isnan(ordered)).sum(1)
    rows = np.arange(len(ordered))
    low, high = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, count // 2]
    middle: NDArray[np.float64] = (low.astype(np.float64) + high) / 2
    return middle


def _blank(count: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {name: np.full(count, value, dtype) for name, (dtype, value) in _SCALARS.items()}
    return arrays | {name: np.full((count, WINDOW), np.nan, np.float32) for name in _WINDOWS}


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isfinite(values), values, np.nan)
