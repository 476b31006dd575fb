r"""Two grids of one case: that of its file and that of the net; from the first to the second and back.

The way there: the axes are reordered and flipped to the closest canonical orientation, then resampled to the wanted
spacing. The way back, `restore`, undoes both, so that scores and files are on the grid that the user has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ics_apps.nearest import did_you_mean
from ics_apps.tasks.segmentation.data.resample import resize, resize_labels
from ics_apps.tasks.segmentation.data.volume import AFFINE_TOLERANCE, Volume

Orientation = Literal["none", "RAS"]
ORIENTATIONS: Final = ("none", "RAS")
ANISOTROPY: Final = 3.0


class Grid:
    """How the array that a net sees lies in the array of the file.

    Args:
        file_shape: Sizes of the file's axes of space.
        file_spacing: Distance of its voxel centres along each.
        affine: The file's voxel index to mm, (4, 4); None if it has none.
        orientation: "RAS": axes are reordered and flipped to run right, anterior, superior, as closely as that goes
            without interpolation; volumes with an affine only. "none": the file's order.
        spacing: Wanted distance of voxel centres along each axis of the net's grid; None: as in the file.

    Attributes:
        order: Axis i of the net is axis `order[i]` of the file.
        flipped: Which axes of the net run against those of the file.
        shape: Sizes of the net's axes.
        spacing: Distance of voxel centres along each, as it came out: the extent is kept, the sizes are whole.
        coarse: The axis along which slices are repeated and not mixed; None if nothing is resampled along one.

    Example:
        >>> grid = Grid((4, 6), (1.0, 1.0), spacing=(2.0, 2.0))
        >>> grid.shape, restore(torch.zeros(1, 3, 2, 3), grid).shape
        ((2, 3), torch.Size([1, 3, 4, 6]))
    """

    # No dataclass: Lightning takes these apart when it moves a batch to its device.
    def __init__(
        self,
        file_shape: Sequence[int],
        file_spacing: Sequence[float],
        affine: NDArray[np.float64] | None = None,
        orientation: Orientation = "none",
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.file_shape = tuple(int(n) for n in file_shape)
        self.file_spacing = tuple(float(h) for h in file_spacing)
        self.affine = affine
        self.order, self.flipped = tuple(range(len(self.file_shape))), (False,) * len(self.file_shape)
        if orientation != "none" and affine is not None and len(self.file_shape) == 3:
            self.order, self.flipped = closest_axes(affine)
        self.shape = self.oriented_shape = tuple(self.file_shape[axis] for axis in self.order)
        self.spacing = oriented = tuple(self.file_spacing[axis] for axis in self.order)
        self.coarse: int | None = None
        if spacing is not None:
            sizes = zip(self.oriented_shape, oriented, spacing, strict=True)
            self.shape = tuple(max(1, round(n * h / wanted)) for n, h, wanted in sizes)
        if self.resampled:
            sizes = zip(self.oriented_shape, oriented, self.shape, strict=True)
            self.spacing = tuple(n * h / new for n, h, new in sizes)
            self.coarse = coarse_axis(oriented) if coarse_axis(oriented) is not None else coarse_axis(self.spacing)

    @property
    def resampled(self) -> bool:
        """Whether the net's voxels are other voxels than the file's."""
        return self.shape != self.oriented_shape

    @property
    def changes(self) -> bool:
        """Whether the net sees another array than the file holds."""
        return self.resampled or any(self.flipped) or self.order != tuple(range(len(self.order)))

    def orient(self, values: NDArray[Any]) -> NDArray[Any]:
        r"""The file's array (..., \*S) in the net's order of axes, as a view."""
        lead = values.ndim - len(self.order)
        values = values.transpose(*range(lead), *[lead + axis for axis in self.order])
        against = tuple(lead + axis for axis, flip in enumerate(self.flipped) if flip)
        return np.flip(values, against) if against else values

    def image(self, values: NDArray[Any]) -> NDArray[Any]:
        r"""The file's image (C, \*S) on the net's grid; float32 if it had to be resampled."""
        values = self.orient(values)
        if not self.resampled:
            return np.ascontiguousarray(values)
        source = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return resize(source, self.shape, self.coarse).numpy()

    def labels(self, values: NDArray[Any]) -> NDArray[Any]:
        r"""The file's labels (\*S), or one channel a label (K, \*S), on the net's grid."""
        values = np.ascontiguousarray(self.orient(values))
        if not self.resampled:
            return values
        if values.ndim == len(self.shape):
            return resize_labels(values, self.shape, self.coarse)
        return np.stack([resize_labels(label, self.shape, self.coarse) for label in values])


def restore(values: Tensor, grid: Grid | None) -> Tensor:
    r"""What a net gave, (B, K, \*S), on the grid of the file: resampled, flipped and reordered back.

    Logits are interpolated as they are. Without resampling this is exact.

    Args:
        values: Logits, probabilities or an image on the net's grid.
        grid: Of `batch["grid"]`; None: the two grids are one.
    """
    if grid is None or not grid.changes:
        return values
    lead = values.shape[: values.ndim - len(grid.shape)]
    if grid.resampled:
        flat = values.reshape(-1, *values.shape[len(lead) :])
        flat = resize(flat if flat.is_floating_point() else flat.float(), grid.oriented_shape, grid.coarse)
        values = flat.reshape(*lead, *flat.shape[1:])
    back = [axis + len(lead) for axis, flipped in enumerate(grid.flipped) if flipped]
    values = values.flip(back) if back else values
    inverse = [len(lead) + grid.order.index(axis) for axis in range(len(grid.order))]
    return values.permute(*range(len(lead)), *inverse)


def check_grid(orientation: Any, spacing: Any) -> None:
    """Refuse what is no orientation or no spacing.

    Raises:
        ValueError: With what is allowed.
    """
    if orientation not in ORIENTATIONS:
        hint = did_you_mean(str(orientation), ORIENTATIONS)
        raise ValueError(f"orientation is {orientation!r}; allowed are {', '.join(ORIENTATIONS)}{hint}")
    numbers = isinstance(spacing, Sequence) and not isinstance(spacing, str) and all(h > 0 for h in spacing)
    if spacing is not None and spacing != "median" and not numbers:
        raise ValueError(f"spacing is {spacing!r}; allowed are 'median', one number above 0 an axis, or null.")


def closest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which file axis runs most to the right, to the front and upwards, and whether it runs the other way.

    Args:
        affine: Voxel index to mm (right, anterior, superior), (4, 4).

    Example:
        >>> left_up = np.array([[0.0, -1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])  # axes S, L, A
        >>> closest_axes(left_up)
        ((1, 2, 0), (True, False, False))
    """
    from nibabel.orientations import io_orientation

    found = io_orientation(affine)  # type: ignore[no-untyped-call]
    order = tuple(int(np.flatnonzero(found[:, 0] == axis)[0]) for axis in range(3))
    return order, tuple(bool(found[axis, 1] < 0) for axis in order)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Where the axes run to, such as `RAS` or `LPS`.

    Example:
        >>> axis_codes(np.diag([-1.0, 1, 1, 1]))
        'LAS'
    """
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(affine))  # type: ignore[no-untyped-call]


def coarse_axis(spacing: Sequence[float]) -> int | None:
    """The axis whose spacing exceeds 3 times the finest; None if there is none, or if there are several.

    Example:
        >>> coarse_axis((0.5, 0.5, 7.5)), coarse_axis((1.0, 1.0, 1.0))
        (2, None)
    """
    coarse = [axis for axis, h in enumerate(spacing) if h > ANISOTROPY * min(spacing)]
    return coarse[0] if len(coarse) == 1 and len(spacing) > 1 else None


def median_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """The median along each axis; along a coarse one the 10th percentile, at least the largest of the others.

    An axis is coarse if its median spacing exceeds 3 times the largest other one, and its median size is below a third
    of the smallest other one.

    Args:
        spacings: Of each training case, oriented.
        shapes: Likewise.

    Example:
        >>> median_spacing([(0.5, 0.5, 7.5), (1.0, 1.0, 1.0), (1.0, 1.0, 1.2)], [(49, 54, 9), (60, 55, 52), (9, 9, 9)])
        (1.0, 1.0, 1.2)

    Reference: Isensee et al. 2021 (nnU-Net), `ExperimentPlanner.determine_fullres_target_spacing`.
    """
    target = np.median(np.asarray(spacings, dtype=np.float64), axis=0)
    sizes = np.median(np.asarray(shapes, dtype=np.float64), axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(len(target)) if axis != worst]
    if target[worst] > ANISOTROPY * target[others].max() and sizes[worst] * ANISOTROPY < sizes[others].min():
        tenth = float(np.percentile([spacing[worst] for spacing in spacings], 10))
        target[worst] = max(tenth, float(target[others].max()))
    return tuple(float(h) for h in target)


def align_mask(mask: Volume, shape: Sequence[int], affine: NDArray[np.float64] | None) -> Volume:
    """The mask with its axes in the order and direction of its image's, if both have the same voxels.

    Another program may have written it along other axes. A mask of other voxels comes back as it is.

    Args:
        mask: Of one image.
        shape: That image's sizes.
        affine: Its voxel index to mm.
    """
    if affine is None or mask.affine is None or len(mask.spacing) != 3 or len(shape) != 3:
        return mask
    if mask.values.shape[-3:] == tuple(shape) and np.allclose(mask.affine, affine, rtol=0.0, atol=AFFINE_TOLERANCE):
        return mask
    ours, wanted = Grid(mask.values.shape[-3:], mask.spacing, mask.affine, "RAS"), Grid(shape, (1, 1, 1), affine, "RAS")
    ours_affine, wanted_affine = (_oriented_affine(grid) for grid in (ours, wanted))
    same = np.allclose(ours_affine, wanted_affine, rtol=0.0, atol=AFFINE_TOLERANCE)
    if not same or ours.oriented_shape != wanted.oriented_shape:
        return mask
    back = restore(torch.from_numpy(np.ascontiguousarray(ours.orient(mask.values))), wanted).numpy()
    spacing = [0.0] * 3
    for axis, file_axis in enumerate(wanted.order):
        spacing[file_axis] = ours.spacing[axis]
    return Volume(np.ascontiguousarray(back), tuple(spacing), affine)


def _oriented_affine(grid: Grid) -> NDArray[np.float64]:
    """The affine of the reordered and flipped array."""
    affine = np.asarray(grid.affine, dtype=np.float64)
    result = affine.copy()
    for axis, (file_axis, flip) in enumerate(zip(grid.order, grid.flipped, strict=True)):
        result[:3, axis] = -affine[:3, file_axis] if flip else affine[:3, file_axis]
        if flip:
            result[:3, 3] += affine[:3, file_axis] * (grid.oriented_shape[axis] - 1)
    return result
