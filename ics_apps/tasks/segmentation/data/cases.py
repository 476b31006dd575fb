"""Cases held in memory (or re-read when they do not fit) and whole cases as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ics_apps.tasks.segmentation.data.classes import LabelMap
from ics_apps.tasks.segmentation.data.formats import MAX_VOXELS, read_image, read_mask

Normalize = Literal["case", "none"]
NORMALIZE: Final = ("case", "none")
_CHUNK: Final = 2**20


@dataclass(slots=True)
class Case:
    """One image with its mask.

    Args:
        name: Unique in its part.
        shape: Sizes of the axes of S.
        spacing: Distance of voxel centres along each axis.
        mean: What is subtracted from each channel, (C,).
        std: What each channel is divided by, (C,).
        image: (C, *S) as the file has it; None if it is read anew at each use.
        mask: Class indices (*S); None if it is read anew or there is none.
        image_path: Its file; None for a generated case.
        mask_path: Its mask's file; None for a generated case and for prediction.
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

    def normalized(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """(values - mean) / std of each channel, as a new float32 array.

        Args:
            values: The image or a part of it, (C, *S).
        """
        columns = (-1,) + (1,) * (values.ndim - 1)
        result = values.astype(np.float32)
        result -= self.mean.reshape(columns)
        result /= self.std.reshape(columns)
        return result


class Cases(Sequence[Case]):
    """A part of a dataset.

    Args:
        cases: The cases.
        labels: Turns the values of mask files into class indices; needed if a mask is re-read.
        max_voxels: Limit for a file that is re-read.
    """

    def __init__(self, cases: Sequence[Case], labels: LabelMap | None = None, max_voxels: int = MAX_VOXELS) -> None:
        self._cases = list(cases)
        self.labels = labels
        self.max_voxels = max_voxels

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        return self._cases[index]

    def image(self, index: int) -> NDArray[Any]:
        """The image of a case as the file has it, (C, *S)."""
        case = self._cases[index]
        if case.image is not None:
            return case.image
        if case.image_path is None:
            raise ValueError(f"case {case.name} has neither an image in memory nor a file.")
        return read_image(case.image_path, self.max_voxels).values

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class indices of a case, (*S)."""
        case = self._cases[index]
        if case.mask is not None:
            return case.mask
        if case.mask_path is None or self.labels is None:
            raise ValueError(f"case {case.name} has no mask.")
        return self.labels.to_index(read_mask(case.mask_path, self.max_voxels).values)


class WholeCases(Dataset[dict[str, Any]]):
    """Cases at full size, for validation, test and prediction.

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
        """{"image": float32 (C, *S), "case": name} with "mask" int64 (*S) and "spacing" float32, or "source"."""
        case: Case = self.cases[index]
        item: dict[str, Any] = {
            "image": torch.from_numpy(case.normalized(self.cases.image(index))),
            "case": case.name,
        }
        if not self.labelled:
            item["source"] = str(case.image_path)
            return item
        item["mask"] = torch.from_numpy(self.cases.mask(index).astype(np.int64))
        item["spacing"] = torch.tensor(case.spacing, dtype=torch.float32)
        return item


def moments(image: NDArray[Any], normalize: Normalize) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel; 0 and 1 without normalization.

    A constant channel has std 1, so that it becomes 0 and not NaN.

    Args:
        image: (C, *S).
        normalize: "case" or "none".

    Example:
        >>> mean, std = moments(np.array([[1, 3]], dtype=np.uint8), "case")
        >>> mean.tolist(), std.tolist()
        ([2.0], [1.0])
    """
    mean = np.zeros(len(image), dtype=np.float64)
    std = np.ones(len(image), dtype=np.float64)
    if normalize == "case":
        for channel, values in enumerate(image):
            flat = values.ravel()
            mean[channel] = _mean(flat)
            spread = _spread(flat, mean[channel])
            std[channel] = spread if spread > 1e-8 else 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def _mean(flat: NDArray[Any]) -> float:
    return sum(float(flat[i : i + _CHUNK].sum(dtype=np.float64)) for i in range(0, flat.size, _CHUNK)) / flat.size


def _spread(flat: NDArray[Any], mean: float) -> float:
    # In chunks, because a float64 copy of a whole volume is eight times an 8-bit one.
    total = 0.0
    for i in range(0, flat.size, _CHUNK):
        part = flat[i : i + _CHUNK].astype(np.float64) - mean
        total += float(part @ part)
    return float(np.sqrt(total / flat.size))
