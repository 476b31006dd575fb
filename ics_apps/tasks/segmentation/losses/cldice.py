"""The centre-line Dice: whether tubes stay connected, from soft skeletons."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.tasks.segmentation.losses.dice import check_smooth
from ics_apps.tasks.segmentation.losses.regions import position_sums, regions

_MAX_POOL: Final = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class ClDiceLoss(nn.Module):
    r"""One minus the centre-line Dice, for vessels, fibres and membranes.

    .. math:: 1 - \frac{2 T_{prec} T_{sens}}{T_{prec} + T_{sens}}, \quad
        T_{prec} = \frac{\sum S_p g + s}{\sum S_p + s}, \quad T_{sens} = \frac{\sum S_g p + s}{\sum S_g + s}

    with S the soft skeleton of probabilities p and truth g, sums over space and batch, and the mean over the classes
    but the background. Ignored positions count as background in both skeletons. Add it to Dice in `CombinedLoss`: alone
    it does not ask for the right width.

    Args:
        iterations: Erosions of a skeleton, >= 1: at least the largest radius of a tube, in positions.
        smooth: s, in positions, >= 0.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S), one to three axes; the loss is a scalar in [0, 1], float32.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> target = torch.zeros(1, 5, 7, dtype=torch.long)
        >>> target[0, 2] = 1  # a line
        >>> logits = 40.0 * torch.stack([1 - 2 * target, 2 * target - 1], 1)
        >>> float(ClDiceLoss()(logits, target))
        0.0

    Reference: Shit 2021, algorithm 1 and equation 3. MONAI sums over classes, and from 1.6 over each
    case alone.
    """

    def __init__(self, iterations: int = 3, smooth: float = 1.0) -> None:
        super().__init__()
        check_smooth("ClDiceLoss", smooth)
        if iterations < 1:
            raise ValueError(f"ClDiceLoss has iterations={iterations}; allowed are whole numbers >= 1, for example 3.")
        self.iterations, self.smooth = iterations, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        found = regions(logits, target)
        precision = self._share(soft_skeleton(found.p, self.iterations), found.g)
        sensitivity = self._share(soft_skeleton(found.g, self.iterations), found.p)
        return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()

    def _share(self, skeleton: Tensor, mask: Tensor) -> Tensor:
        inside, total = position_sums(skeleton * mask, per_case=False), position_sums(skeleton, per_case=False)
        return (inside + self.smooth) / (total + self.smooth)


def soft_skeleton(x: Tensor, iterations: int) -> Tensor:
    r"""The centre lines of masks in [0, 1], differentiably: what opening takes away, after each of some erosions.

    Args:
        x: (B, K, \*S), one to three axes.
        iterations: Erosions, >= 1.

    Example:
        >>> bar = torch.zeros(1, 1, 5, 9)
        >>> bar[0, 0, 1:4, 1:8] = 1  # three wide: its middle is the centre line
        >>> soft_skeleton(bar, 2)[0, 0, 2].int().tolist()
        [0, 0, 1, 1, 1, 1, 1, 0, 0]
    """
    skeleton = F.relu(x - _opened(x))
    for _ in range(iterations):
        x = _eroded(x)
        rest = F.relu(x - _opened(x))
        skeleton = skeleton + F.relu(rest - skeleton * rest)
    return skeleton


def _opened(x: Tensor) -> Tensor:
    pool = _MAX_POOL[x.ndim - 2]
    opened: Tensor = pool(_eroded(x), 3, 1, 1)
    return opened


def _eroded(x: Tensor) -> Tensor:
    """The smallest value of a position and its neighbours along each axis: a cross."""
    dim = x.ndim - 2
    pool = _MAX_POOL[dim]
    eroded = x
    for axis in range(dim):
        size = [3 if k == axis else 1 for k in range(dim)]
        eroded = torch.minimum(eroded, -pool(-x, size, 1, [n // 2 for n in size]))
    return eroded
