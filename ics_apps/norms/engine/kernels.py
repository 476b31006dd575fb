"""When torch's fused norm kernels have lost digits, told from the moments that they return beside the result."""

from __future__ import annotations

import torch
from torch import Tensor

from ics_apps.norms.engine.own_gradient import is_watched

MOST_IN_ROWS = 8.0
"""Largest |mean| / sigma at which a kernel's float32 result is right to a few 1e-6 of its size where it walks along the
pooled values: it computes x * scale + shift, which cancels."""
MOST_IN_CHANNELS_LAST = {"batch": 4.0, "group": 2.0}
"""The same in channels_last, where batch norm sums without pairing and group norm takes the variance as a difference of
squares: at 33 their errors are 4e-4 and 1e-2."""


def reveals_moments(x: Tensor) -> bool:
    """Whether the kernel may be called so that it returns the moments: eagerly, on a CPU, with something to do."""
    return x.device.type == "cpu" and x.numel() > 0 and not is_watched()


def lost_digits(mean: Tensor, rstd: Tensor, most: float) -> bool:
    """Whether some |mean| / sigma is larger than `most`; a NaN, of which nothing is left, is not."""
    if mean.dtype == torch.float64:
        return False
    return float(torch.linalg.vector_norm(mean.detach() * rstd.detach(), float("inf"))) > most
