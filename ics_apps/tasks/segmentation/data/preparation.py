r"""How a case becomes what the net sees: learnt from the training cases, applied to all, kept with the checkpoint.

Reading is in `reading`, the grids are in `grid`, the intensities in `intensity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ics_apps.tasks.segmentation.data.classes import LabelMap, LabelNames
from ics_apps.tasks.segmentation.data.formats import read_images, read_masks
from ics_apps.tasks.segmentation.data.grid import Grid, Orientation, align_mask, axis_codes, median_spacing
from ics_apps.tasks.segmentation.data.intensity import ct_statistics, foreground_sample, per_channel
from ics_apps.tasks.segmentation.data.reading import ReadCase

MIXED_SPACING: Final = 1.5


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to every case.

    Args:
        orientation: As of `Grid`.
        spacing: Of the net's grid, one number an axis; None: that of each file.
        normalize: A name of `intensity.NORMALIZE` for each channel.
        ct: For each channel, `intensity.ct_statistics` of the training set; None where it has another normalization.
    """

    orientation: Orientation
    spacing: tuple[float, ...] | None
    normalize: tuple[str, ...]
    ct: tuple[tuple[float, ...] | None, ...]

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "orientation": self.orientation,
            "spacing": None if self.spacing is None else list(self.spacing),
            "normalize": list(self.normalize),
            "ct": [None if channel is None else list(channel) for channel in self.ct],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preparation:
        """The inverse of `state`.

        Example:
            >>> preparation = Preparation("RAS", (1.0, 1.0, 2.0), ("case",), (None,))
            >>> Preparation.from_state(preparation.state()) == preparation
            True
        """
        spacing = state["spacing"]
        ct = tuple(None if channel is None else tuple(channel) for channel in state["ct"])
        return cls(state["orientation"], None if spacing is None else tuple(spacing), tuple(state["normalize"]), ct)

    def apply(self, read: ReadCase, labels: LabelMap | LabelNames | None, free_bytes: int) -> int:
        """Bring a case to the net's grid and intensities.

        Args:
            read: Changed in place; its arrays leave the memory if they grew beyond the limit.
            labels: Turns the values of its mask into class indices; None if it has no mask.
            free_bytes: Memory that is left for arrays of cases.

        Returns:
            Memory that is left then.
        """
        case = read.case
        file = case.grid or Grid(case.shape, case.spacing)
        case.grid = grid = Grid(file.file_shape, file.file_spacing, file.affine, self.orientation, self.spacing)
        case.shape, case.spacing = grid.shape, grid.spacing
        self._set_intensity(read)
        if case.image is None:
            return free_bytes
        if grid.changes:
            case.image = grid.image(case.image)
        if read.values is not None and labels is not None:
            mask, read.values = labels.to_index(read.values), None
            case.mask = grid.labels(mask)
            case.file_mask = mask if grid.resampled else None
        size = sum(array.nbytes for array in (case.image, case.mask, case.file_mask) if array is not None)
        if size > free_bytes:
            case.image = case.mask = case.file_mask = None
            return free_bytes
        return free_bytes - size

    def _set_intensity(self, read: ReadCase) -> None:
        case = read.case
        if "ct" in self.normalize:
            limits = [(-np.inf, np.inf) if channel is None else channel[:2] for channel in self.ct]
            case.clip = np.asarray(limits, dtype=np.float32)
            for i, channel in enumerate(self.ct):
                if channel is not None:
                    case.mean[i], case.std[i] = channel[2:]
        if "zscore_nonzero" in self.normalize:
            case.zero_stays = np.asarray([name == "zscore_nonzero" for name in self.normalize])


def learn(
    train: Sequence[ReadCase],
    labels: LabelMap | LabelNames,
    normalize: str | Sequence[str],
    orientation: Orientation,
    spacing: str | Sequence[float] | None,
    max_voxels: int,
) -> Preparation:
    """What the training cases decide: the median spacing and the intensities of CT.

    Args:
        train: As read.
        labels: Tell what the foreground is.
        normalize: A name of `intensity.NORMALIZE`, or one a channel.
        orientation: As of `Grid`.
        spacing: "median", one number an axis, or None.
        max_voxels: Limit for a file that is re-read.

    Raises:
        ValueError: `ct` without a foreground voxel in any training mask.
    """
    names = tuple(per_channel(normalize, train[0].channels))
    target = None if spacing is None or isinstance(spacing, str) else tuple(float(h) for h in spacing)
    if spacing == "median":
        grids = [_oriented(read, orientation) for read in train]
        target = median_spacing([grid.spacing for grid in grids], [grid.shape for grid in grids])
    ct: list[tuple[float, ...] | None] = [None] * len(names)
    if "ct" in names:
        samples = [sample for sample in _foreground_samples(train, labels, max_voxels) if sample is not None]
        if not samples:
            raise ValueError("normalize is 'ct', but no training mask has foreground to learn from; use 'case'.")
        ct = [tuple(ct_statistics(samples, i)) if name == "ct" else None for i, name in enumerate(names)]
    return Preparation(orientation, target, names, tuple(ct))


def unlike(reads: Sequence[ReadCase], orientation: Orientation, spacing: Any) -> list[str]:
    """Lines of warning: axes or voxel sizes that differ between the cases and are left as they are."""
    lines = []
    affines = [read.case.grid.affine for read in reads if read.case.grid is not None]
    codes = sorted({axis_codes(affine) for affine in affines if affine is not None and len(reads[0].case.shape) == 3})
    if orientation == "none" and len(codes) > 1:
        lines.append(
            f"the axes of the cases run in {len(codes)} ways ({', '.join(codes)}); orientation: RAS makes them one."
        )
    if spacing is None:
        spacings = np.asarray([_oriented(read, orientation).spacing for read in reads])
        ratio = float((spacings.max(0) / spacings.min(0)).max())
        if ratio > MIXED_SPACING:
            lines.append(
                f"voxel sizes differ {ratio:.3g}-fold between the cases; spacing: median resamples them to one."
            )
    return lines


def _oriented(read: ReadCase, orientation: Orientation) -> Grid:
    grid = read.case.grid
    if grid is None:
        return Grid(read.case.shape, read.case.spacing)
    return Grid(grid.file_shape, grid.file_spacing, grid.affine, orientation)


def _foreground_samples(train: Sequence[ReadCase], labels: LabelMap | LabelNames, max_voxels: int) -> Iterator[Any]:
    for read in train:
        case, values = read.case, read.values
        image = case.image
        if image is None or values is None:
            image = read_images([Path(str(case.image_path)), *case.more_images], max_voxels).values
            paths = [Path(str(case.mask_path)), *case.more_masks]
            mask = read_masks(paths, labels.multi_label, max_voxels)
            values = align_mask(mask, case.shape, None if case.grid is None else case.grid.affine).values
        if labels.multi_label:
            foreground = np.asarray(values.any(0))
        else:
            foreground = values != labels.values[0]
            if labels.ignore is not None:
                foreground &= values != labels.ignore
        yield foreground_sample(image, foreground, len(train))
