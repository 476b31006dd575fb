"""Where windows lie in an image: overlapping ones that are blended, and tiles that share no position.

Only places are computed here; nothing is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of an image that a net is run on, and the part of it whose prediction counts.

    Attributes:
        window: What the net sees, in positions of the image.
        core: What is kept of it; the cores of all tiles cover the image once.
    """

    window: Slices
    core: Slices

    @property
    def inner(self) -> Slices:
        """The core in positions of the window."""
        pairs = zip(self.window, self.core, strict=True)
        return tuple(slice(core.start - window.start, core.stop - window.start) for window, core in pairs)


def overlapping(size: Sequence[int], roi: Sequence[int], overlap: float) -> list[Slices]:
    """Windows every max(int(roi (1 - overlap)), 1) positions; the last of an axis is shifted back to end at the border.

    Args:
        size: Sizes of the image, each at least that of the window.
        roi: Sizes of the window.
        overlap: Share of a window that its neighbour covers as well, in [0, 1).

    Example:
        >>> overlapping([10], [4], 0.5)
        [(slice(0, 4, None),), (slice(2, 6, None),), (slice(4, 8, None),), (slice(6, 10, None),)]
        >>> overlapping([7], [4], 0.25)
        [(slice(0, 4, None),), (slice(3, 7, None),)]

    Reference: MONAI 1.6, `dense_patch_slices`.
    """
    axes = []
    for length, window in zip(size, roi, strict=True):
        step = max(int(window * (1 - overlap)), 1)
        last = length - window
        starts = [*range(0, last, step), last]
        axes.append([slice(start, start + window) for start in starts])
    return list(product(*axes))


def tiles(size: Sequence[int], roi: Sequence[int], halo: Sequence[int], stride: int) -> list[Tile]:
    """Tiles whose cores cover an image once, and whose windows reach `halo` positions beyond their cores.

    Windows and cores begin at multiples of `stride`, so that poolings see the grid that they see in the whole image. A
    border of the image is a border of a window: the net pads there, and nowhere inside, as it does in the whole.

    Args:
        size: Sizes of the image.
        roi: The largest window; rounded down to a multiple of `stride`.
        halo: Positions that the net looks beyond an output position, on each axis; see `needed_halo`. Rounded up.
        stride: Positions of the input in one position of the net's coarsest map.

    Raises:
        ValueError: The window leaves no core between its two halos.

    Example:
        >>> [(tile.window, tile.core) for tile in tiles([20], [12], [3], 4)]
        [((slice(0, 12, None),), (slice(0, 8, None),)), ((slice(4, 16, None),), (slice(8, 12, None),)), \
((slice(8, 20, None),), (slice(12, 20, None),))]

    Reference: ours.
    """
    axes = [_axis_tiles(length, window, reach, stride) for length, window, reach in zip(size, roi, halo, strict=True)]
    return [Tile(tuple(w for w, _ in parts), tuple(c for _, c in parts)) for parts in product(*axes)]


def _axis_tiles(length: int, window: int, halo: int, stride: int) -> list[tuple[slice, slice]]:
    reach = -(-halo // stride) * stride
    if length <= window:
        return [(slice(0, length), slice(0, length))]
    window = window // stride * stride
    if window < 2 * reach + stride:
        raise ValueError(
            f"a window of {window} positions has no core between two halos of {reach}; take a roi of at least "
            f"{2 * reach + stride} on this axis, or a smaller halo, which is then not exact"
        )
    found: list[tuple[slice, slice]] = []
    begin = 0
    while True:
        start = max(begin - reach, 0)
        if start + window >= length:
            return [*found, (slice(start, length), slice(begin, length))]
        end = start + window - reach
        found.append((slice(start, start + window), slice(begin, end)))
        begin = end
