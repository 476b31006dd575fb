"""Cases held in memory, in a store on disk, or re-read; and whole cases as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ics_apps.tasks.segmentation.data.classes import UNLABELLED, LabelMap, LabelNames, value_counts
from ics_apps.tasks.segmentation.data.formats import MAX_VOXELS, read_images, read_masks
from ics_apps.tasks.segmentation.data.grid import Grid, align_mask, restore
from ics_apps.tasks.segmentation.data.store import ArrayStore, array_name
from ics_apps.tasks.segmentation.targets import IGNORE

MOST_VOXELS: Final = 8192


@dataclass(slots=True)
class Case:
    r"""One image with its mask, on the net's grid.

    Args:
        name: Unique in its part.
        shape: Sizes of the axes of S.
        spacing: Distance of voxel centres along each axis.
        mean: What is subtracted from each channel, (C,).
        std: What each channel is divided by, (C,).
        image: (C, \*S) in the file's units; None if it is read anew at each use.
        mask: Class indices (\*S) or labels (K, \*S); None if it is read anew or there is none.
        image_path: Its file, that of the first channel if there are several; None for a generated case.
        mask_path: Its mask's file; None for a generated case and for prediction.
        more_images: Files of the further channels.
        more_masks: Masks of the further labels.
        clip: Lowest and highest value of each channel, (C, 2), before the mean is subtracted; None: no limits.
        zero_stays: Of which channels the value 0 stays 0, (C,); None: of none.
        grid: How it lies in its file; None for a generated case.
        file_mask: The mask on the file's grid, where that has other voxels and it is kept.
        voxels: Where each class is, see `Cases.voxels`; found at first use.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    image: NDArray[Any] | None = None
    mask: NDArray[np.uint8] | None = None
    image_path: Path | None = None
    mask_path: Path | None = None
    more_images: tuple[Path, ...] = ()
    more_masks: tuple[Path, ...] = ()
    clip: NDArray[np.float32] | None = None
    zero_stays: NDArray[np.bool_] | None = None
    grid: Grid | None = None
    file_mask: NDArray[np.uint8] | None = None
    voxels: list[NDArray[np.int64]] | None = field(default=None, repr=False)

    def normalized(self, values: NDArray[Any]) -> NDArray[np.float32]:
        r"""(values - mean) / std of each channel, after the limits, as a new float32 array.

        Args:
            values: The image or a part of it, (C, \*S).
        """
        columns = (-1,) + (1,) * (values.ndim - 1)
        result = values.astype(np.float32)
        outside = None if self.zero_stays is None else (result == 0) & self.zero_stays.reshape(columns)
        if self.clip is not None:
            np.clip(result, self.clip[:, 0].reshape(columns), self.clip[:, 1].reshape(columns), out=result)
        result -= self.mean.reshape(columns)
        result /= self.std.reshape(columns)
        if outside is not None:
            result[outside] = 0
        return result


class Cases(Sequence[Case]):
    """A part of a dataset.

    Args:
        cases: The cases.
        labels: Turns the values of mask files into class indices; needed if a mask is re-read.
        max_voxels: Limit for a file that is re-read.
        store: Where prepared arrays that are not in memory are kept; None: nowhere.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        labels: LabelMap | LabelNames | None = None,
        max_voxels: int = MAX_VOXELS,
        store: ArrayStore | None = None,
    ) -> None:
        self._cases = list(cases)
        self.labels = labels
        self.max_voxels = max_voxels
        self.store = store

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        return self._cases[index]

    def image(self, index: int) -> NDArray[Any]:
        r"""The image of a case on the net's grid, (C, \*S), in the file's units."""
        case = self._cases[index]
        if case.image is not None:
            return case.image
        if case.image_path is None:
            raise ValueError(f"case {case.name} has neither an image in memory nor a file.")
        if self.store is None:
            return self._read_image(case)
        name = array_name([case.image_path, *case.more_images], f"image {_way(case.grid)}")
        return self.store.array(name, lambda: self._read_image(case))

    def mask(self, index: int) -> NDArray[np.uint8]:
        r"""The class indices (\*S) or labels (K, \*S) of a case on the net's grid."""
        case = self._cases[index]
        if case.mask is not None:
            return case.mask
        if self.store is None or case.mask_path is None or self.labels is None:
            return self._to_net(case, self.file_mask(index))
        name = array_name([case.mask_path, *case.more_masks], f"mask {_way(case.grid)} {self.labels.describe()}")
        return self.store.array(name, lambda: self._to_net(case, self.file_mask(index)))

    def file_mask(self, index: int) -> NDArray[np.uint8]:
        """The same on the grid of the file."""
        case = self._cases[index]
        if case.file_mask is not None:
            return case.file_mask
        if case.mask is not None and (case.grid is None or not case.grid.resampled):
            return np.asarray(restore(torch.from_numpy(case.mask), case.grid).numpy())
        if case.mask_path is None or self.labels is None:
            raise ValueError(f"case {case.name} has no mask.")
        mask = read_masks([case.mask_path, *case.more_masks], self.labels.multi_label, self.max_voxels)
        if case.grid is not None:
            mask = align_mask(mask, case.grid.file_shape, case.grid.affine)
        return self.labels.to_index(mask.values)

    def target(self, mask: NDArray[np.uint8]) -> Tensor:
        """A mask as int64, `IGNORE` where nobody has labelled."""
        target = torch.from_numpy(mask.astype(np.int64))
        if self.labels is not None and self.labels.ignore is not None:
            target[target == UNLABELLED] = IGNORE
        return target

    def voxels(self, index: int) -> list[NDArray[np.int64]]:
        """Flat indices of voxels of each foreground class (label) that the case has, at most 8192 of one.

        Of a larger class every n-th voxel in storage order is taken.
        """
        case = self._cases[index]
        if case.voxels is None:
            mask = self.mask(index)
            if mask.ndim > len(case.shape):
                found = [np.flatnonzero(label) for label in mask]
            else:
                ignored = self.labels is not None and self.labels.ignore is not None
                values = [v for v in value_counts(mask) if v != 0 and not (ignored and v == UNLABELLED)]
                found = [np.flatnonzero(mask == value) for value in values]
            case.voxels = [_spread_out(where) for where in found if where.size]
        return case.voxels

    def _read_image(self, case: Case) -> NDArray[Any]:
        volume = read_images([Path(str(case.image_path)), *case.more_images], self.max_voxels)
        return volume.values if case.grid is None else case.grid.image(volume.values)

    def _to_net(self, case: Case, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return mask if case.grid is None else case.grid.labels(mask)


class WholeCases(Dataset[dict[str, Any]]):
    """Cases at full size, for validation, test and prediction: the image on the net's grid, the truth on the file's.

    Args:
        cases: The cases.
        labelled: Give mask and spacing (True), or the source path (False).
    """

    def __init__(self, cases: Cases, *, labelled: bool = True) -> None:
        self.cases = cases
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        r"""{"image": float32 (C, \*S), "case": name, "grid"} with "mask" int64 and "spacing" float32, or "source".

        `grid.restore(logits, grid)` brings what the net gives for the image to the file's grid, on which mask and
        spacing are.
        """
        case: Case = self.cases[index]
        item: dict[str, Any] = {
            "image": torch.from_numpy(case.normalized(self.cases.image(index))),
            "case": case.name,
            "grid": case.grid,
        }
        if not self.labelled:
            item["source"] = str(case.image_path)
            return item
        item["mask"] = self.cases.target(self.cases.file_mask(index))
        spacing = case.spacing if case.grid is None else case.grid.file_spacing
        item["spacing"] = torch.tensor(spacing, dtype=torch.float32)
        return item


def collate_whole(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of whole cases; their grids stay a list."""
    batch: dict[str, Any] = default_collate([{k: v for k, v in item.items() if k != "grid"} for item in items])
    batch["grid"] = [item["grid"] for item in items]
    return batch


def _way(grid: Grid | None) -> str:
    return "" if grid is None else f"{grid.order} {grid.flipped} {grid.shape} {grid.coarse}"


def _spread_out(where: NDArray[np.int64]) -> NDArray[np.int64]:
    if where.size <= MOST_VOXELS:
        return where
    return where[np.arange(MOST_VOXELS, dtype=np.int64) * where.size // MOST_VOXELS]
