"""The boundary loss: probabilities weighed by their distance from the true boundary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ics_apps.tasks.segmentation.losses.regions import regions


class BoundaryLoss(nn.Module):
    r"""Probability that lies far outside the truth costs, inside it pays.

    .. math:: \frac{1}{N} \sum_{b, k, x} p_k(x) \, \phi_k(x)

    over the N known positions of all classes but the background, phi the `signed_distance`; ignored positions are none
    of the mask. It can
    be negative and has no use alone: add it to a region loss in `CombinedLoss`. The paper's weight starts at 0.01 and
    grows by 0.01 an epoch; a loss does not know the epoch, so here the weight is a constant, and 0.01 to 0.1 is
    the place to start.

    Args:
        spacing: Size of a position along each axis, in the unit that the loss shall have; None: 1.

    Shape:
        logits (B, K, \*S), target (B, \*S) or (B, K, \*S); the loss is a scalar in float32. Distances are computed on
        the CPU in every step.

    Raises:
        ValueError: A spacing is not positive, or (in the first step) there is not one for each axis.

    Example:
        >>> target = torch.tensor([[0, 0, 1, 1, 1, 0, 0]])
        >>> logits = 40.0 * torch.stack([1 - 2 * target, 2 * target - 1], 1)
        >>> round(7 * float(BoundaryLoss()(logits, target)), 6)  # one position lies inside the boundary
        -1.0

    Reference: Kervadec 2019, equation 5.
    """

    def __init__(self, spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        if spacing is not None and (not spacing or min(spacing) <= 0):
            raise ValueError(f"BoundaryLoss has spacing={list(spacing)}; allowed are values > 0, one for each axis.")
        self.spacing = None if spacing is None else tuple(spacing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        found = regions(logits, target)
        spacing = self.spacing or (1.0,) * (found.p.ndim - 2)
        if len(spacing) != found.p.ndim - 2:
            raise ValueError(
                f"BoundaryLoss has {len(spacing)} values of spacing and the images have {found.p.ndim - 2} axes; "
                "give one value for each axis."
            )
        masks = (found.g > 0.5).cpu().numpy()
        maps = np.stack([np.stack([signed_distance(mask, spacing) for mask in case]) for case in masks])
        phi = torch.from_numpy(maps).to(found.p)
        count = found.known.expand_as(found.p).sum().clamp(min=1)
        return (found.p * phi).sum() / count


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """The distance of every position from a mask's boundary: positive outside, at most 0 inside.

    Outside it is the distance to the nearest position of the mask; inside minus that to the nearest position outside,
    plus the smallest spacing, so that the mask's own outermost positions have 0. A mask that is empty or fills the
    image has no boundary: 0 everywhere.

    Args:
        mask: The mask.
        spacing: Size of a position along each axis.

    Example:
        >>> signed_distance(np.array([False, False, True, True, True, False]), [1.0]).tolist()
        [2.0, 1.0, 0.0, -1.0, 0.0, 1.0]

    Reference: `one_hot2dist` of Kervadec's code, which adds 1 whatever the spacing: below 1 that is positive inside.
    """
    from scipy.ndimage import distance_transform_edt

    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    outside: NDArray[np.float64] = distance_transform_edt(~mask, sampling=spacing)
    inside: NDArray[np.float64] = distance_transform_edt(mask, sampling=spacing)
    return outside - np.where(mask, inside - min(spacing), 0.0)
