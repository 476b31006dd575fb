r"""Values on one grid read at the voxels of another grid over the same extent. Which grids these are is in `grid`.

Both grids cover the same box: voxel i of n lies at (i + 1/2) / n of the extent, as in `interpolate` without
`align_corners`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(values: Tensor, shape: Sequence[int], coarse: int | None = None) -> Tensor:
    r"""Values (N, \*S) at the voxels of a grid of `shape`: linear, and by the nearest slice along the axis `coarse`.

    Slices that are far apart are neighbours in name only, so that a line between them shows anatomy that is nowhere.

    Args:
        values: Floating point (N, \*S).
        shape: The sizes of the new grid.
        coarse: An axis of S, of which no values are mixed; None: linear along all.

    Example:
        >>> resize(torch.tensor([[0.0, 4.0]]), [4]).tolist()
        [[0.0, 1.0, 3.0, 4.0]]
        >>> resize(torch.tensor([[0.0, 4.0]]), [4], coarse=0).tolist()
        [[0.0, 0.0, 4.0, 4.0]]

    Reference: Isensee et al. 2021 (nnU-Net) for the rule of the coarse axis.
    """
    if coarse is not None:
        old, new = values.shape[1 + coarse], shape[coarse]
        index = ((torch.arange(new, device=values.device, dtype=torch.float64) + 0.5) * old / new).long()
        values = values.index_select(1 + coarse, index.clamp_max(old - 1))
    if tuple(values.shape[1:]) == tuple(shape):
        return values
    if coarse is not None and values.ndim > 2:
        # In the planes alone, so that the coarse axis costs nothing and changes nothing.
        planes = values.movedim(1 + coarse, 1)
        size = [n for axis, n in enumerate(shape) if axis != coarse]
        flat = resize(planes.reshape(-1, *planes.shape[2:]), size)
        return flat.reshape(*planes.shape[:2], *size).movedim(1, 1 + coarse)
    mode = _MODES[len(shape)]
    return F.interpolate(values[None], size=list(shape), mode=mode, align_corners=False)[0]


def resize_labels(values: NDArray[Any], shape: Sequence[int], coarse: int | None = None) -> NDArray[Any]:
    r"""Labels (\*S) on a new grid: the label with the largest share of a voxel, the smaller value of equals.

    Args:
        values: Whole numbers (\*S).
        shape: The sizes of the new grid.
        coarse: As in `resize`.

    Example:
        >>> resize_labels(np.array([[0, 0, 7, 7]], dtype=np.uint8), [1, 2]).tolist()
        [[0, 7]]
    """
    result = np.zeros(tuple(shape), dtype=values.dtype)
    best = torch.zeros(tuple(shape))
    for value in np.unique(values):
        share = resize(torch.from_numpy((values == value).astype(np.float32))[None], shape, coarse)[0]
        larger = share > best
        result[larger.numpy()] = value
        best = torch.where(larger, share, best)
    return result
