"""All figures of every case and class in one metric, from one pass over each pair of surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ics_apps.nearest import did_you_mean
from ics_apps.tasks.segmentation.case_table import CaseTable
from ics_apps.tasks.segmentation.metrics.calibration import Calibration, calibration
from ics_apps.tasks.segmentation.metrics.foreground import Foreground
from ics_apps.tasks.segmentation.metrics.surface import diagonal, surfaces

EmptyRule = Literal["counted", "monai"]

_RULES: Final = ("counted", "monai")
FIGURES: Final = ("dice", "iou", "nsd", "hd95", "hd", "asd")
_OF_CASE: Final = Calibration._fields
_NAME_BYTES: Final = 256  # a file name has at most 255
_NAN, _INF = math.nan, math.inf
# The figures, in their order, of a pair of masks of which one is empty: (truth empty, prediction empty).
_MONAI: Final = {
    "truth": (_NAN, _NAN, 0.0, _NAN, _INF, _INF),
    "prediction": (0.0, 0.0, 0.0, _NAN, _INF, _INF),
}


class CaseScores(Metric):
    r"""Dice, IoU, NSD, HD95, HD and ASD of every case and class, and the calibration of every case.

    Dice and IoU are those of `OverlapScores`; the distances are those of `metrics.surface`, in the spacing's unit: HD
    the largest, HD95 the larger of the two directed 95 % quantiles, ASD the mean of both directions pooled, NSD the
    share of both surfaces within a tolerance; the calibration is that of `metrics.calibration`.

    Where both masks are empty no figure is counted (NaN). Where one is, a rule decides:

    ==========================  ================  ==============  =====  =====  =====
    rule, and what is empty     dice, iou         nsd             hd95   hd     asd
    ==========================  ================  ==============  =====  =====  =====
    counted, either             0                 0               the image's diagonal
    monai, the truth            NaN               0               NaN    inf    inf
    monai, the prediction       0                 0               NaN    inf    inf
    ==========================  ================  ==============  =====  =====  =====

    Args:
        class_names: Names by class index, the first is background and is not scored; or the names of the labels.
        multi_label: Whether cases are labels (B, K, \*S), all of them scored, instead of class indices.
        tolerance: NSD's, in the spacing's unit, >= 0; one for all, or one for each scored class.
        empty: The rule where one mask is empty. Means over cases and classes are ours with both.

    Returns (compute):
        A `CaseTable` of all cases of all ranks; a name that comes twice is one case, as a distributed sampler repeats
        cases so that all ranks have equally many.

    Raises:
        ValueError: The tolerances do not fit the classes, or there is no such rule.

    Example:
        >>> scores = CaseScores(["background", "cell"])
        >>> mask = torch.tensor([[[0, 1, 1, 0]]])
        >>> scores.update(mask, mask.roll(1, 2), torch.tensor([[1.0, 2.0]]), ["a"])
        >>> {name: round(value, 2) for name, value in scores.compute().metrics().items() if name in FIGURES}
        {'dice': 0.5, 'iou': 0.33, 'nsd': 0.5, 'hd95': 1.9, 'hd': 2.0, 'asd': 1.0}

    Reference: Maier-Hein 2024 (Metrics Reloaded); the second rule is that of MONAI 1.6, its ASD with `symmetric=True`.
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]
    names: list[Tensor]

    def __init__(
        self,
        class_names: Sequence[str],
        multi_label: bool = False,
        tolerance: float | Sequence[float] = 1.0,
        empty: EmptyRule = "counted",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.foreground = Foreground(class_names, multi_label)
        self.tolerance = _tolerances(tolerance, len(self.foreground.names))
        if empty not in _RULES:
            raise ValueError(f"empty={empty!r} is no rule; allowed are {_RULES}{did_you_mean(empty, _RULES)}")
        self.empty: EmptyRule = empty
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("names", default=[], dist_reduce_fx="cat")

    def update(
        self,
        prediction: Tensor,
        target: Tensor,
        spacing: Tensor,
        cases: Sequence[str],
        probabilities: Tensor | None = None,
    ) -> None:
        r"""Add cases.

        Args:
            prediction: Class indices (B, \*S) or labels (B, K, \*S).
            target: The same of the truth; what is `IGNORE` is in no mask and in no figure.
            spacing: (B, dim).
            cases: B names, each of its own.
            probabilities: (B, K, \*S); without them there is no calibration (NaN).
        """
        found = self.foreground.masks(prediction, target).cpu().numpy()
        true = self.foreground.masks(target, target).cpu().numpy()
        for index, (name, steps) in enumerate(zip(cases, spacing.tolist(), strict=True)):
            row = [
                value
                for mask, truth, tolerance in zip(found[index], true[index], self.tolerance, strict=True)
                for value in self._figures(mask, truth, steps, tolerance)
            ]
            if probabilities is None:
                row += [math.nan] * len(_OF_CASE)
            else:
                row += calibration(probabilities[index], target[index])
            self.rows.append(torch.tensor([row], dtype=torch.float32, device=self.device))
            self.names.append(torch.tensor([_encoded(name)], dtype=torch.uint8, device=self.device))

    def compute(self) -> CaseTable:
        """The table of all cases so far."""
        rows = dim_zero_cat(self.rows).cpu().numpy().astype(np.float64)
        names = [_decoded(name) for name in dim_zero_cat(self.names).tolist()]
        first = sorted({name: index for index, name in reversed(list(enumerate(names)))}.values())
        rows, names = rows[first], [names[index] for index in first]
        of_case = rows[:, -len(_OF_CASE) :]
        by_class = rows[:, : -len(_OF_CASE)].reshape(len(rows), len(self.foreground.names), len(FIGURES))
        return CaseTable(
            names,
            self.foreground.names,
            {figure: by_class[..., index] for index, figure in enumerate(FIGURES)},
            {figure: of_case[:, index] for index, figure in enumerate(_OF_CASE)},
        )

    def _figures(
        self, prediction: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
    ) -> tuple[float, ...]:
        found, true = np.count_nonzero(prediction), np.count_nonzero(target)
        if not found and not true:
            return (math.nan,) * len(FIGURES)
        if not found or not true:
            if self.empty == "monai":
                return _MONAI["prediction" if true else "truth"]
            return (0.0, 0.0, 0.0, *[diagonal(target.shape, spacing)] * 3)
        hit = np.count_nonzero(prediction & target)
        both = surfaces(prediction, target, spacing)
        return (
            2 * hit / (found + true),
            hit / (found + true - hit),
            both.within(tolerance),
            both.hausdorff(0.95),
            both.hausdorff(),
            both.average(),
        )


def _tolerances(tolerance: float | Sequence[float], classes: int) -> list[float]:
    values = list(tolerance) if isinstance(tolerance, Sequence) else [float(tolerance)] * classes
    if len(values) != classes or min(values, default=0.0) < 0:
        raise ValueError(
            f"tolerance is {tolerance} and {classes} classes are scored; give one value >= 0 for all, or one for each."
        )
    return values


def _encoded(name: str) -> list[int]:
    """A name as bytes of a fixed number, so that ranks can gather it; of a longer one the end is kept."""
    return list(name.encode()[-_NAME_BYTES:].ljust(_NAME_BYTES, b"\0"))


def _decoded(name: list[int]) -> str:
    return bytes(name).rstrip(b"\0").decode(errors="replace")
