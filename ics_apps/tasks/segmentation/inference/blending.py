"""How much each position of a window counts where windows overlap. Which windows there are is in `windows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

Blending = Literal["gaussian", "constant"]

SIGMA: Final = 0.125  # of the window's length
LEAST: Final = 1e-3


def gaussian_weights(roi: Sequence[int]) -> Tensor:
    r"""Weights that fall off from the centre of a window to its border.

    .. math:: w(x) = \max\Big(\prod_a e^{-x_a^2 / (2 \sigma_a^2)},\ \max(10^{-3}, \min w)\Big), \quad \sigma_a = n_a / 8

    with x_a = -(n_a - 1)/2 ... (n_a - 1)/2 on axis a of n_a positions. Not normalised: the sum of w y is divided by the
    sum of w. The floor stands behind the product: it holds for 32 % of a square window and 58 % of a cube.

    Args:
        roi: Sizes n_a of the window.

    Returns:
        Weights of shape `roi` in float32, in (0, 1].

    Example:
        >>> gaussian_weights([3])
        tensor([0.0286, 1.0000, 0.0286])

    Reference: MONAI 1.6, `compute_importance_map`, with which it agrees to rounding.
    """
    weights = torch.ones(())
    for size in roi:
        places = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weights = weights.unsqueeze(-1) * torch.exp(-places.square() / (2 * (SIGMA * size) ** 2))
    return weights.clamp_min(max(float(weights.min()), LEAST))


def window_weights(blending: Blending, roi: Sequence[int]) -> Tensor:
    """The weights of a kind of blending: `gaussian_weights`, or ones.

    Example:
        >>> window_weights("constant", [2]).tolist()
        [1.0, 1.0]
    """
    return gaussian_weights(roi) if blending == "gaussian" else torch.ones(tuple(roi))
