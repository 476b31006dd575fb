"""How far probabilities can be believed: expected calibration error and Brier score of one case.

A multi-class position is one forecast of K classes; with labels every (label, position) is a forecast of its own, yes
or no. So one label with sigmoid and two classes with softmax of the same probabilities have the same figures.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ics_apps.tasks.segmentation.metrics.surface import bounding_box
from ics_apps.tasks.segmentation.targets import IGNORE

BINS: Final = 15
BOX_MARGIN: Final = 0.1  # of the box's extent, on each side

Floats = NDArray[np.float64]


class Calibration(NamedTuple):
    """Calibration of one case; NaN where no position is known.

    Attributes:
        ece: expected calibration error over the image, in [0, 1]. Most positions are easy background.
        ece_box: the same in the box around the true foreground, widened by a tenth of its extent (at least one
            position) on each side; NaN without foreground.
        brier: the Brier score over the image, the sum over classes, in [0, 2].
    """

    ece: float
    ece_box: float
    brier: float


def calibration(probabilities: Tensor, target: Tensor) -> Calibration:
    r"""The calibration of one case.

    Args:
        probabilities: (K, \*S), each in [0, 1].
        target: Class indices (\*S), or labels (K, \*S); `IGNORE` is not counted.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> calibration(sure, torch.tensor([0, 0, 1]))
        Calibration(ece=0.0, ece_box=0.0, brier=0.0)
    """
    p = probabilities.float()
    if p.shape == target.shape:
        true = target > 0
        confidence, correct = p.maximum(1 - p), (p > 0.5) == true
        error = 2 * (p - true.to(p.dtype)) ** 2
        foreground = true.any(0)
    else:
        confidence, guess = p.max(0)
        correct = guess == target
        of_true = p.gather(0, target.clamp(min=0).unsqueeze(0)).squeeze(0)
        error = (p**2).sum(0) - 2 * of_true + 1
        foreground = target > 0
    known = (target != IGNORE).cpu().numpy()
    sure, right = confidence.cpu().numpy().astype(np.float64), correct.cpu().numpy()
    in_box = _in_box(foreground.cpu().numpy(), known)
    errors = error.cpu().numpy().astype(np.float64)[known]
    return Calibration(
        expected_calibration_error(sure[known], right[known]),
        expected_calibration_error(sure[in_box], right[in_box]),
        float(errors.mean()) if errors.size else float("nan"),
    )


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> float:
    r"""The mean distance between confidence and accuracy, over bins of confidence.

    .. math:: ECE = \sum_k \frac{n_k}{N} \, | acc_k - conf_k |

    Bins are equal, [k / bins, (k + 1) / bins); 1 belongs to the last.

    Args:
        confidence: The probability of the answer given, (N,), in [0, 1].
        correct: Whether the answer is true, (N,).
        bins: How many bins.

    Returns:
        The error, in [0, 1]; NaN if N is 0.

    Example:
        >>> round(expected_calibration_error(np.full(5, 0.8), np.ones(5, bool)), 6)
        0.2

    Reference: Guo 2017, equation 3 (there bins are open on the left).
    """
    if not confidence.size:
        return float("nan")
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, correct, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(gap).sum() / confidence.size)


def _in_box(foreground: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Known positions in the box around the foreground, of the shape of `known`."""
    inside = np.zeros(foreground.shape, dtype=bool)
    if foreground.any():
        extents = [side.stop - side.start for side in bounding_box(foreground)]
        inside[bounding_box(foreground, [max(1, round(BOX_MARGIN * extent)) for extent in extents])] = True
    both: NDArray[np.bool_] = inside & known
    return both
