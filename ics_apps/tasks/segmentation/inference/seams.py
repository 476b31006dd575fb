"""How much a tiled prediction depends on where its tiles lie. How to avoid it is in `global_statistics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ics_apps.tasks.segmentation.inference.sliding_window import Predict, tiled
from ics_apps.tasks.segmentation.inference.windows import Tile, tiles


class SeamScore(NamedTuple):
    """Two indicators of seams.

    Attributes:
        mismatch: Mean |y_a - y_b|, both tiles covering the position with a full halo; 0 for a net whose tiles agree.
        edge_ratio: Mean |difference of neighbours| across the lines between tiles over that elsewhere; 1 without seams,
            NaN where a prediction is constant off the lines.
    """

    mismatch: float
    edge_ratio: float


def seam_score(image: Tensor, predict: Predict, roi: Sequence[int], halo: Sequence[int], stride: int) -> SeamScore:
    r"""Measure the seams of a prediction by tiles, each with its own statistics.

    Two tilings are predicted, the second with shorter tiles, so that every position but few has another window:

    .. math:: \text{mismatch} = \operatorname{mean}_x |y_a(x) - y_b(x)|

    over all positions, each in the cores of one tile of either kind. Both windows hold the halo of the position, so
    what differs comes from what the net takes from all of its window: statistics of norms that pool positions.

    Args:
        image: (B, C, \*S), longer than the window on one axis at least.
        predict: Maps (B, C, \*W) to (B, K, \*W); give probabilities, whose differences of all norms compare.
        roi: Sizes of the tiles.
        halo: The halo that the net needs; see `needed_halo`.
        stride: The net's stride.

    Raises:
        ValueError: The image is one tile, or the window too small for two kinds of tiles.

    Example:
        >>> image = torch.randn(1, 1, 64)
        >>> seam_score(image, torch.relu, [32], [0], 8).mismatch
        0.0
        >>> seam_score(image, lambda x: (x - x.mean(2, keepdim=True)).sigmoid(), [32], [0], 8).mismatch > 0
        True

    Reference: Buglakova 2025 (2503.19545), tile mismatch; this form is ours.
    """
    size = image.shape[2:]
    first = tiles(size, roi, halo, stride)
    # A window shorter by half a core is another window with other cores, and still has the whole halo.
    reach = [-(-h // stride) * stride for h in halo]
    lengths = [length // stride * stride for length in roi]
    shorter = [n - max((n - 2 * h) // (2 * stride), 1) * stride for n, h in zip(lengths, reach, strict=True)]
    second = tiles(size, shorter, halo, stride)
    if len(first) == 1:
        raise ValueError(f"the image {tuple(size)} is one tile of {list(roi)}: it has no seams; take a smaller roi")
    one, other = (tiled(image, predict, parts) for parts in (first, second))
    return SeamScore(float((one - other).abs().mean()), _edge_ratio(one, first))


def _edge_ratio(prediction: Tensor, parts: Sequence[Tile]) -> float:
    across, elsewhere = [], []
    for axis in range(prediction.dim() - 2):
        steps = prediction.diff(dim=axis + 2).abs().transpose(0, axis + 2).flatten(1).mean(1)
        lines = torch.zeros(len(steps), dtype=torch.bool)
        lines[[tile.core[axis].start - 1 for tile in parts if tile.core[axis].start > 0]] = True
        across.append(steps[lines])
        elsewhere.append(steps[~lines])
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())
