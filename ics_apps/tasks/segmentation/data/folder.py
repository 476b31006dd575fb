"""`ImageMaskFolderData`: a folder of images and masks as train, val, test and predict batches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.utils.data import DataLoader

from ics_apps.tasks.segmentation.data.cases import NORMALIZE, Cases, Normalize, WholeCases
from ics_apps.tasks.segmentation.data.checks import DataError, Problems
from ics_apps.tasks.segmentation.data.classes import LabelMap
from ics_apps.tasks.segmentation.data.formats import MAX_VOXELS
from ics_apps.tasks.segmentation.data.loaders import SegmentationData, at_least, report_fractions
from ics_apps.tasks.segmentation.data.manifest import PARTS
from ics_apps.tasks.segmentation.data.pairing import find_images, missing_folder
from ics_apps.tasks.segmentation.data.reading import (
    CaseReader,
    ReadCase,
    agree,
    check_values,
    class_counts,
    find_classes,
    to_cases,
)
from ics_apps.tasks.segmentation.data.splits import SPLIT_FILE, SplitRule, find_split

_log = logging.getLogger(__name__)


class ImageMaskFolderData(SegmentationData):
    """Pairs of image and mask files that share a stem: `root/images/07.png` with `root/masks/07.png`.

    PNG, JPEG, TIFF (also 16-bit, pages are depth) and NIfTI (extra `medical`), 2-D or 3-D; sizes may differ between
    cases, numbers of axes and channels may not. All files are read and checked in `setup`; nothing is written.

    The split, by the first that applies: a CSV (`split`, else `root/split.csv`) with the columns image, mask, split
    (train, val or test; paths relative to root); sub-folders `train/`, `val/`, `test/`, each with the two folders;
    a seeded draw, which orders the cases by a hash of seed and stem, so that a further file moves few others. Without
    a val part one is drawn from train, without a test part test uses val; `split_note` says which.

    Args:
        root: The dataset's folder.
        images: Name of the folder of images.
        masks: Name of the folder of masks.
        split: Path of a CSV (from root, or absolute), "folders", "seeded", or None as above.
        val_fraction: Share drawn for val, 0 < f < 1; at least one case.
        test_fraction: Share drawn for test, 0 <= f < 1.
        seed: Seed of the draw and of the patches.
        classes: Class name -> value in the mask files, the background first. None: the distinct values of the
            training masks, sorted, as background, foreground (two) or background, class_<value> (more; at most 32).
        dim: Axes of space, 2 or 3; "auto": those of most cases.
        channels: Channels of an image; "auto": those of most cases.
        normalize: "case": z-score of each case and channel. "none": the values of the file.
        patch_size: Voxels of a training patch along each axis, or one for all; reflected where a case is smaller.
        batch_size: Patches in a training batch.
        patches_per_epoch: Patches an epoch, rounded up to full batches; None: 16 a training case.
        augment: "default", "none", or a dict of options, see `Augmentation`.
        num_workers: Worker processes of each loader.
        predict_root: Folder of images to predict; None: root's images (of its test part where it has sub-folders).
        max_voxels: Largest number of values in one file, by its header.
        cache_mb: Memory for cases; those beyond it are read at each use.

    Raises:
        DataError: In `setup`, all faults of the files at once.
        ValueError: An argument outside its range.
        ImportError: NIfTI files without the extra `medical`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str = "images",
        masks: str = "masks",
        split: str | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        seed: int = 0,
        classes: dict[str, int] | None = None,
        dim: Literal["auto"] | int = "auto",
        channels: Literal["auto"] | int = "auto",
        normalize: Normalize = "case",
        patch_size: int | list[int] = 128,
        batch_size: int = 8,
        patches_per_epoch: int | None = None,
        augment: str | dict[str, Any] = "default",
        num_workers: int = 0,
        predict_root: str | None = None,
        max_voxels: int = MAX_VOXELS,
        cache_mb: int = 4096,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            batch_size=batch_size,
            patches_per_epoch=patches_per_epoch,
            augment=augment,
            num_workers=num_workers,
            seed=seed,
        )
        if not 0 < val_fraction < 1 or not 0 <= test_fraction < 1 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction is {val_fraction} and test_fraction {test_fraction}; "
                "allowed are 0 < val_fraction, 0 <= test_fraction and a sum below 1."
            )
        if dim not in ("auto", 2, 3):
            raise ValueError(f"dim is {dim!r}; allowed are 'auto', 2 and 3.")
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize is {normalize!r}; allowed are {', '.join(NORMALIZE)}.")
        if channels != "auto":
            at_least("channels", channels, 1)
        at_least("max_voxels", max_voxels, 1)
        at_least("cache_mb", cache_mb, 0)
        self.classes = None if classes is None else dict(classes)
        if self.classes is not None:
            LabelMap(self.classes)
        self.root = Path(root)
        self.rule = SplitRule(images, masks, split, val_fraction, test_fraction, seed)
        self.predict_root = None if predict_root is None else Path(predict_root)
        self.normalize = normalize
        self.max_voxels = max_voxels
        self.class_fractions: dict[str, float] = {}
        self._wanted_dim = None if dim == "auto" else dim
        self._wanted_channels = None if channels == "auto" else channels
        self._free_bytes = cache_mb * 2**20

    def setup(self, stage: str) -> None:
        """Read and check the files.

        Args:
            stage: "predict" reads the images to predict, and the labelled cases only to learn unnamed classes; any
                other stage reads all labelled cases, once.

        Raises:
            DataError: All faults found.
        """
        if stage != "predict":
            if "train" not in self.parts:
                self._read_labelled()
            return
        if "train" not in self.parts and self.classes is None and self._is_labelled():
            self._read_labelled()
        if "predict" not in self.parts:
            self._read_unlabelled()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images to predict, whole and one at a time."""
        return self._loader(WholeCases(self._part("predict"), labelled=False), batch_size=1)

    def _read_labelled(self) -> None:
        problems = Problems(self.root)
        self._check_root(problems)
        split = find_split(self.root, self.rule, problems)
        reader = CaseReader(problems, self.normalize, self.max_voxels, self._free_bytes)
        reads: dict[str, list[ReadCase]] = {}
        for part in PARTS:
            found = [reader.read_pair(pair) for pair in getattr(split, part)]
            reads[part] = [read for read in found if read is not None]
        everything = [read for part in PARTS for read in reads[part]]
        dim, channels = agree(everything, self._wanted_dim, self._wanted_channels, problems)
        labels = find_classes(self.classes, reads["train"], problems)
        if labels is not None:
            check_values(everything, labels, self.classes is not None, problems)
        problems.raise_if_any()
        if labels is None or dim is None or channels is None:
            raise DataError(f"{self.root} holds no case to train on.")
        self.dim, self.in_channels, self.split_note = dim, channels, split.note
        self.class_names, self.mask_values = labels.names, labels.values
        self.patch_shape()
        self.parts |= {part: to_cases(reads[part], labels, self.max_voxels) for part in PARTS if reads[part]}
        self._free_bytes = reader.free_bytes
        self.class_fractions, warning = report_fractions(labels.names, class_counts(everything, labels))
        self._tell(everything, warning, reader.not_kept)

    def _read_unlabelled(self) -> None:
        folder = self._predict_folder()
        problems = Problems(folder)
        files = find_images(folder, problems) or {}
        reader = CaseReader(problems, self.normalize, self.max_voxels, self._free_bytes)
        found = [reader.read_unlabelled(stem, path) for stem, path in files.items()]
        reads = [read for read in found if read is not None]
        trained = "train" in self.parts
        wanted_dim = self.dim if trained else self._wanted_dim
        wanted_channels = self.in_channels if trained else self._wanted_channels
        dim, channels = agree(reads, wanted_dim, wanted_channels, problems)
        problems.raise_if_any()
        if dim is None or channels is None:
            raise DataError(f"{folder} holds no image to predict.")
        if not trained:
            labels = None if self.classes is None else LabelMap(self.classes)
            self.dim, self.in_channels, self.split_note = dim, channels, ""
            self.class_names, self.mask_values = (labels.names, labels.values) if labels else ([], [])
        self.parts["predict"] = Cases([read.case for read in reads], None, self.max_voxels)

    def _check_root(self, problems: Problems) -> None:
        if not self.root.is_dir():
            problems.add(self.root, missing_folder(self.root))
            problems.raise_if_any()

    def _is_labelled(self) -> bool:
        folders = (self.root / self.rule.masks, self.root / "train" / self.rule.masks)
        return self.rule.split is not None or (self.root / SPLIT_FILE).is_file() or any(p.is_dir() for p in folders)

    def _predict_folder(self) -> Path:
        if self.predict_root is not None:
            inner = self.predict_root / self.rule.images
            return inner if inner.is_dir() else self.predict_root
        candidates = [self.root / self.rule.images]
        candidates += [self.root / part / self.rule.images for part in ("test", "val")]
        return next((folder for folder in candidates if folder.is_dir()), self.root)

    @rank_zero_only
    def _tell(self, reads: list[ReadCase], warning: str | None, not_kept: int) -> None:
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.class_fractions.items())
        rank_zero_info(f"Split: {self.split_note}. Classes: {shares}.")
        if warning:
            _log.warning(warning)
        if not_kept:
            _log.warning("%d of %d cases exceed cache_mb and are read at each use.", not_kept, len(reads))
        patch = self.patch_shape()
        small = [read.case.name for read in reads if any(n < p for n, p in zip(read.case.shape, patch, strict=True))]
        if small:
            _log.warning(
                "patch_size %s exceeds %d cases (%s first): their edges are reflected.", patch, len(small), small[0]
            )
