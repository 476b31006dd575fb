"""How far beyond an output position a net looks: the halo that a tile needs. Found by trying, for any net."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.norms.layers.base import MomentNorm
from ics_apps.norms.layers.local import DivisiveNorm
from ics_apps.tasks.segmentation.inference.given_moments import Forward, pooling_norms, replaced_forwards

DEFAULT_STRIDE: Final = 32
LONGEST: Final = 4096


def net_stride(net: nn.Module) -> int:
    """Input positions in one position of the net's coarsest map: its attribute `stride`, else 32.

    32 suits every net of at most five halvings; a multiple of the true stride costs halo, never exactness.

    Example:
        >>> from ics_apps.nets import UNet
        >>> net_stride(UNet(1, 2, depth=3)), net_stride(nn.Identity())
        (8, 32)
    """
    stride = getattr(net, "stride", DEFAULT_STRIDE)
    return stride if isinstance(stride, int) and stride >= 1 else DEFAULT_STRIDE


def needed_halo(net: nn.Module, in_channels: int, dim: int) -> list[int]:
    """On each axis the least halo with which tiles (cores on the net's grid) agree with the whole image.

    A copy of the net in evaluation mode sees an image that is NaN but for a window. NaN passes convolutions, poolings
    and activations wherever a value would, so an output that is a number depends on no position outside the window:
    unlike a gradient, no unlucky value hides a path. The halo is found by bisection, one axis after the other. Norms
    that pool positions are left out: with whole-image statistics they look at their own position only.

    A plain U-Net of depth d (3-wide convolutions in pairs, pooling by 2, transposed convolutions) needs 8 for d = 1,
    else 6 * 2^d - 2; with cores at any place it would be 7 * 2^d - 5.

    Args:
        net: Maps (B, C, *S) to (B, K, *S).
        in_channels: C.
        dim: Number of axes of space.

    Raises:
        ValueError: The net looks at the whole image (global pooling or attention), or farther than 1024 positions.

    Example:
        >>> from ics_apps.nets import UNet
        >>> needed_halo(UNet(1, 2, dim=2, depth=1, width=2), 1, 2)
        [8, 8]

    Reference: ours.
    """
    probe = copy.deepcopy(net).cpu().double().eval()
    stride = net_stride(net)
    # In double precision: faster kernels for single precision (Winograd's) spread NaN over their blocks.
    with torch.inference_mode(), replaced_forwards(_stand_ins(probe)):
        found: list[int] = []
        for axis in range(dim):
            # Most nets look as far along all axes: two passes tell whether this one does.
            known = found[:1] if found and _is_least(probe, in_channels, dim, axis, stride, found[0]) else []
            found += known or [_halo_of_axis(probe, in_channels, dim, axis, stride)]
        return found


def _stand_ins(net: nn.Module) -> dict[nn.Module, Forward]:
    """Forwards that look as far as a norm does, where its own would spread NaN by sums that cancel out for numbers."""
    found: dict[nn.Module, Forward] = dict.fromkeys(pooling_norms(net).values(), torch.relu)
    for module in net.modules():
        if isinstance(module, MomentNorm):
            found[module] = torch.relu
        elif isinstance(module, DivisiveNorm):
            # It centres by a window, then divides by a window of what it centred.
            found[module] = partial(_looking_around, 2 * (module.window // 2))
    return found


def _looking_around(reach: int, x: Tensor) -> Tensor:
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
    around: Tensor = pool(x.mean(1, keepdim=True), 2 * reach + 1, stride=1, padding=reach)
    return x + around


def _halo_of_axis(net: nn.Module, channels: int, dim: int, axis: int, stride: int) -> int:
    reach = stride * math.ceil(16 / stride)  # of the image beyond the core, on each side
    low = -1  # too small a halo
    while not _agrees(net, channels, dim, axis, stride, reach, reach - stride):
        low = reach - stride
        reach *= 2
        if 2 * reach + stride > LONGEST:
            raise ValueError(
                f"{type(net).__name__} looks at the whole image, or farther than {reach // 2} positions along axis "
                f"{axis}: no halo makes tiles exact; give a halo, which is then an approximation"
            )
    high = reach - stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _agrees(net, channels, dim, axis, stride, reach, middle) else (middle, high)
    return high


def _is_least(net: nn.Module, channels: int, dim: int, axis: int, stride: int, halo: int) -> bool:
    reach = (halo // stride + 1) * stride
    enough = _agrees(net, channels, dim, axis, stride, reach, halo)
    return enough and not (halo and _agrees(net, channels, dim, axis, stride, reach, halo - 1))


def _agrees(net: nn.Module, channels: int, dim: int, axis: int, stride: int, reach: int, halo: int) -> bool:
    """Whether a core in the middle depends on no position farther than `halo` from it."""
    size = [stride] * dim
    size[axis] = 2 * reach + stride
    image = torch.full((1, channels, *size), torch.nan, dtype=torch.float64)
    image.narrow(axis + 2, reach - halo, stride + 2 * halo).zero_()
    output: Tensor = net(image)
    return bool(output.narrow(axis + 2, reach, stride).isfinite().all())
