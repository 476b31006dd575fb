"""Distances between surfaces, and what is read from them: HD, HD95, ASD and NSD of two masks.

A surface is the mask without its erosion by a cross; outside the image is background. Distances run from every position
of one surface to the nearest of the other, both ways, with one size of a position for each axis: the spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ics_apps.tasks.segmentation.metrics.foreground import Foreground

# Of the tolerance: three steps of 0.1 are 0.30000000000000004, and shall be within 0.3.
_TIE: Final = 1e-6


class Surfaces(NamedTuple):
    """The distances between two surfaces, in the spacing's unit.

    Attributes:
        there: from each position of the prediction's surface to the truth's.
        back: from each position of the truth's surface to the prediction's.
    """

    there: NDArray[np.float64]
    back: NDArray[np.float64]

    def hausdorff(self, quantile: float = 1.0) -> float:
        """The larger of the two directed quantiles, which interpolate linearly; 1 is the largest distance, HD.

        Example:
            >>> Surfaces(np.array([0.0, 2.0]), np.array([1.0])).hausdorff()
            2.0
        """
        return float(max(np.quantile(self.there, quantile), np.quantile(self.back, quantile)))

    def average(self) -> float:
        """The mean of both directions pooled, known as ASSD or symmetric ASD.

        Example:
            >>> Surfaces(np.array([0.0, 2.0]), np.array([1.0])).average()
            1.0
        """
        return float((self.there.sum() + self.back.sum()) / (len(self.there) + len(self.back)))

    def within(self, tolerance: float) -> float:
        """The share of both surfaces at most `tolerance` from the other: the normalized surface distance, NSD.

        Positions are counted, not weighed by their area.

        Example:
            >>> round(Surfaces(np.array([0.0, 2.0]), np.array([1.0])).within(1.0), 4)
            0.6667

        Reference: Nikolov 2018, there with areas.
        """
        limit = tolerance * (1 + _TIE)
        near = (self.there <= limit).sum() + (self.back <= limit).sum()
        return float(near / (len(self.there) + len(self.back)))


def surfaces(prediction: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]) -> Surfaces:
    """The distances between the surfaces of two masks, neither of them empty.

    Args:
        prediction: A mask.
        target: Another of the same shape.
        spacing: Size of a position along each axis.

    Example:
        >>> a, b = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
        >>> a[2, 2] = b[2, 5] = True
        >>> surfaces(a, b, (1.0, 2.0))
        Surfaces(there=array([6.]), back=array([6.]))
    """
    box = bounding_box(prediction | target, margin=1)
    predicted_edge, true_edge = _edge(prediction[box]), _edge(target[box])
    return Surfaces(_distances(predicted_edge, true_edge, spacing), _distances(true_edge, predicted_edge, spacing))


def bounding_box(mask: NDArray[np.bool_], margin: int | Sequence[int] = 0) -> tuple[slice, ...]:
    """The smallest box of a mask that is not empty, widened by `margin` positions within the image.

    Example:
        >>> bounding_box(np.array([[0, 0, 0, 0], [0, 0, 0, 1]], bool), margin=1)
        (slice(0, 2, None), slice(2, 4, None))
    """
    margins = [margin] * mask.ndim if isinstance(margin, int) else margin
    box = []
    for axis, more in enumerate(margins):
        there = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        box.append(slice(max(int(there[0]) - more, 0), min(int(there[-1]) + 1 + more, mask.shape[axis])))
    return tuple(box)


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The image's diagonal, in the spacing's unit: the distance that a missed or invented object gets."""
    return math.dist([0] * len(shape), [n * step for n, step in zip(shape, spacing, strict=True)])


def hausdorff95(prediction: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """The 95 % Hausdorff distance of two masks: NaN if both are empty, the image's diagonal if one is.

    Example:
        >>> a, b = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
        >>> a[2, 2] = b[2, 5] = True
        >>> hausdorff95(a, b, (1.0, 2.0))
        6.0
    """
    if not prediction.any() and not target.any():
        return math.nan
    if not prediction.any() or not target.any():
        return diagonal(target.shape, spacing)
    return surfaces(prediction, target, spacing).hausdorff(0.95)


class HausdorffDistance95(Metric):
    r"""The larger of the two directed 95 % quantiles of distances between surfaces, in the spacing's unit.

    .. math:: HD_{95} = \max\big(Q_{.95}(d(P \to G)), Q_{.95}(d(G \to P))\big)

    Quantiles interpolate linearly. Both empty: not counted. One empty: the image's diagonal, so that a miss is seen in
    the mean. `CaseScores` gives this and the other distances for the price of one.

    Args:
        class_names: Names by class index; the first is background and is not scored.
        multi_label: Whether cases are labels (B, K, \*S), all of them scored, instead of class indices.

    Returns (compute):
        `hd95` (mean) and `hd95/<class>`.

    Reference: the definition of MONAI 1.5 `HausdorffDistanceMetric(percentile=95)`, but for a miss, where MONAI gives
    NaN.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    distances: list[Tensor]

    def __init__(self, class_names: Sequence[str], multi_label: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.foreground = Foreground(class_names, multi_label)
        self.add_state("distances", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor, spacing: Tensor) -> None:
        r"""Add cases: class indices (B, \*S) or labels (B, K, \*S), and the spacing (B, dim) of their axes."""
        found = self.foreground.masks(prediction, target).cpu().numpy()
        true = self.foreground.masks(target, target).cpu().numpy()
        for one, truth, steps in zip(found, true, spacing.tolist(), strict=True):
            row = [hausdorff95(mask, real, steps) for mask, real in zip(one, truth, strict=True)]
            self.distances.append(torch.tensor([row], dtype=torch.float32, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """The distances of all cases so far."""
        rows = torch.cat([row.reshape(-1, len(self.foreground.names)) for row in self.distances])
        return self.foreground.means("hd95", rows)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    edge: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    return edge


def _distances(origin: NDArray[np.bool_], goal: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    from scipy.ndimage import distance_transform_edt

    distances: NDArray[np.float64] = distance_transform_edt(~goal, sampling=spacing)[origin]
    return distances
