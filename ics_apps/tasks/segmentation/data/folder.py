"""`ImageMaskFolderData`: a folder of images and masks as train, val, test and predict batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.utils.data import DataLoader

from ics_apps.tasks.segmentation.data.cases import Cases, WholeCases, collate_whole
from ics_apps.tasks.segmentation.data.checks import DataError, Problems
from ics_apps.tasks.segmentation.data.classes import LabelMap, LabelNames
from ics_apps.tasks.segmentation.data.formats import MAX_VOXELS
from ics_apps.tasks.segmentation.data.grid import Orientation, check_grid
from ics_apps.tasks.segmentation.data.intensity import Normalize, check_normalize, per_channel
from ics_apps.tasks.segmentation.data.loaders import SegmentationData, at_least
from ics_apps.tasks.segmentation.data.manifest import PARTS, RowRule
from ics_apps.tasks.segmentation.data.pairing import Layout, find_images, missing_folder
from ics_apps.tasks.segmentation.data.preparation import Preparation, learn, unlike
from ics_apps.tasks.segmentation.data.reading import (
    CaseReader,
    ReadCase,
    agree,
    check_values,
    find_classes,
    shares,
)
from ics_apps.tasks.segmentation.data.splits import SplitRule, find_split, is_labelled, predict_folder
from ics_apps.tasks.segmentation.data.store import ArrayStore

_log = logging.getLogger(__name__)


class ImageMaskFolderData(SegmentationData):
    r"""Pairs of image and mask files that share a stem: `root/images/07.png` with `root/masks/07.png`.

    PNG, JPEG, TIFF (also 16-bit, pages are depth), NPZ and NPY, NIfTI and folders of DICOM slices (extra `medical`),
    2-D or 3-D; sizes may differ between cases, numbers of axes and channels may not. All files are read and checked in
    `setup`; nothing is written but to `cache_dir`.

    The split, by the first that applies: a CSV (`split`, else `root/split.csv`) with the columns image, mask, split
    (train, val, test or train+val; paths relative to root); sub-folders `train/`, `val/`, `test/`, each with the two
    folders; a seeded draw, which orders the cases by a hash of seed and stem, so that a further file moves few others.
    Without a val part one is drawn from train, without a test part test uses val; `split_note` says which.

    Args:
        root: The dataset's folder.
        images: Name of the folder of images.
        masks: Name of the folder of masks; or label -> folder for labels that may overlap.
        channel_files: Ends of the stems of one case's images, one a channel: `[_0000, _0001]`. None: one file a case.
        split: Path of a CSV (from root, or absolute), "folders", "seeded", or None as above.
        rows: Column -> value: only rows of the CSV that hold these values count.
        parts: Stem -> part, in place of what the CSV says.
        val_fraction: Share drawn for val, 0 < f < 1; at least one case.
        test_fraction: Share drawn for test, 0 <= f < 1.
        folds: Split train and val anew into so many folds; None: do not.
        fold: Which of them is val, 0 <= fold < folds.
        subject: Regular expression that finds in a case's name the subject whose cases stay together; None: the column
            `subject` of the CSV, or each case by itself.
        seed: Seed of the draw and of the patches.
        classes: Class name -> value in the mask files, the background first; the name `ignore` is for voxels that count
            nowhere. None: the distinct values of the training masks, sorted, as background, foreground (two) or
            background, class_<value> (more; at most 32). With a list, channel k of a mask file is the label k.
        dim: Axes of space, 2 or 3; "auto": those of most cases.
        channels: Channels of an image; "auto": those of most cases.
        orientation: "RAS" reorders and flips volumes with an affine to run right, anterior, superior; "none" does not.
        spacing: Distance of voxel centres that all cases are resampled to: one number an axis (after `orientation`),
            "median" of the training cases, or None for none.
        normalize: One for all channels, or one each. "case": z-score of each case. "zscore_nonzero": that of the voxels
            that are not 0. "unit": [0, 1] of each case. "ct": clipped and standardized by the foreground of all
            training cases. "none": the values of the file.
        patch_size: Voxels of a training patch along each axis, or one for all; reflected where a case is smaller.
        foreground: Share of the patches that hold foreground for certain; see `PatchDataset`.
        batch_size: Patches in a training batch.
        patches_per_epoch: Patches an epoch, rounded up to full batches; None: 16 a training case.
        augment: "default", "none", or a dict of options, see `Augmentation`.
        num_workers: Worker processes of each loader.
        predict_root: Folder of images to predict; None: root's images (of its test part where it has sub-folders).
        max_voxels: Largest number of values in one file, by its header.
        cache_mb: Memory for cases; those beyond it are read at each use, or mapped from `cache_dir`.
        cache_dir: Folder for prepared cases that exceed `cache_mb`; None: none.
        cache_dir_mb: Largest size of that folder.

    Raises:
        DataError: In `setup`, all faults of the files at once.
        ValueError: An argument outside its range.
        ImportError: NIfTI or DICOM files without the extra `medical`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str = "images",
        masks: str | dict[str, str] = "masks",
        channel_files: list[str] | None = None,
        split: str | None = None,
        rows: dict[str, str] | None = None,
        parts: dict[str, str] | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        folds: int | None = None,
        fold: int = 0,
        subject: str | None = None,
        seed: int = 0,
        classes: dict[str, int] | list[str] | None = None,
        dim: Literal["auto"] | int = "auto",
        channels: Literal["auto"] | int = "auto",
        orientation: Orientation = "none",
        spacing: Literal["median"] | list[float] | None = None,
        normalize: Normalize | list[Normalize] = "case",
        patch_size: int | list[int] = 128,
        foreground: float = 0.0,
        batch_size: int = 8,
        patches_per_epoch: int | None = None,
        augment: str | dict[str, Any] = "default",
        num_workers: int = 0,
        predict_root: str | None = None,
        max_voxels: int = MAX_VOXELS,
        cache_mb: int = 4096,
        cache_dir: str | None = None,
        cache_dir_mb: int = 65536,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            batch_size=batch_size,
            patches_per_epoch=patches_per_epoch,
            augment=augment,
            num_workers=num_workers,
            seed=seed,
            foreground=foreground,
        )
        if dim not in ("auto", 2, 3):
            raise ValueError(f"dim is {dim!r}; allowed are 'auto', 2 and 3.")
        check_normalize(normalize)
        check_grid(orientation, spacing)
        if channels != "auto":
            at_least("channels", channels, 1)
        at_least("max_voxels", max_voxels, 1)
        at_least("cache_mb", cache_mb, 0)
        at_least("cache_dir_mb", cache_dir_mb, 1)
        folders = tuple(masks.values()) if isinstance(masks, dict) else (masks,)
        self.label_names = _overlapping(masks, classes)
        self.classes = dict(classes) if isinstance(classes, dict) else None
        if self.classes is not None:
            LabelMap(self.classes)
        self.root = Path(root)
        layout = Layout(images, folders, tuple(channel_files or ()))
        self.rule = SplitRule(
            layout, split, val_fraction, test_fraction, seed, folds, fold, subject, RowRule(rows or {}, parts or {})
        )
        self.predict_root = None if predict_root is None else Path(predict_root)
        self.orientation, self.spacing, self.normalize = orientation, spacing, normalize
        self.max_voxels = max_voxels
        self.multi_label = self.label_names is not None
        self.class_fractions: dict[str, float] = {}
        self.preparation: Preparation | None = None
        self._wanted_dim = None if dim == "auto" else dim
        self._wanted_channels = None if channels == "auto" else channels
        self._free_bytes = cache_mb * 2**20
        self.store = None if cache_dir is None else ArrayStore(Path(cache_dir), cache_dir_mb * 2**20)
        self._unprepared: list[ReadCase] = []

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
        named = self.classes is not None or self.label_names is not None
        if "train" not in self.parts and not named and is_labelled(self.root, self.rule):
            self._read_labelled()
        if "predict" not in self.parts:
            self._read_unlabelled()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images to predict, whole and one at a time."""
        self._prepare_unlabelled()
        cases = WholeCases(self._part("predict"), labelled=False)
        return self._loader(cases, batch_size=1, collate_fn=collate_whole)

    def state_dict(self) -> dict[str, Any]:
        """What the training cases decided, so that a prediction needs none of them; Lightning keeps it."""
        return {} if self.preparation is None else {"preparation": self.preparation.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the training cases of the checkpoint decided, for the cases still to be prepared."""
        kept = Preparation.from_state(state_dict["preparation"])
        if self.preparation is not None and self.preparation != kept:
            _log.warning("The cases are prepared as %s, but the checkpoint's were as %s.", self.preparation, kept)
        self.preparation = kept

    def _read_labelled(self) -> None:
        problems = Problems(self.root)
        if not self.root.is_dir():
            problems.add(self.root, missing_folder(self.root))
            problems.raise_if_any()
        split = find_split(self.root, self.rule, problems)
        reader = CaseReader(problems, self.normalize, self.max_voxels, self._free_bytes, self.label_names)
        pairs = {pair.image: pair for part in PARTS for pair in getattr(split, part)}
        found = {image: reader.read_pair(pair) for image, pair in pairs.items()}
        everything = [read for read in found.values() if read is not None]
        train = [read for pair in split.train if (read := found[pair.image]) is not None]
        dim, channels = agree(everything, self._wanted_dim, self._wanted_channels, problems)
        labels = self.label_names or find_classes(self.classes, train, problems)
        if labels is not None:
            check_values(everything, labels, self.classes is not None, problems)
        problems.raise_if_any()
        if labels is None or dim is None or channels is None:
            raise DataError(f"{self.root} holds no case to train on.")
        self.dim, self.in_channels, self.split_note = dim, channels, split.note
        self.class_names, self.mask_values = labels.names, labels.values
        self.patch_shape()
        self._check_spacing()
        warnings = unlike(everything, self.orientation, self.spacing)
        self.class_fractions, warning = shares(everything, labels)
        try:
            self.preparation = learn(train, labels, self.normalize, self.orientation, self.spacing, self.max_voxels)
        except ValueError as fault:
            raise DataError(f"{self.root}: {fault}") from fault
        for read in everything:
            self._free_bytes = self.preparation.apply(read, labels, self._free_bytes)
        for part in PARTS:
            cases = [read.case for pair in getattr(split, part) if (read := found[pair.image]) is not None]
            if cases:
                self.parts[part] = Cases(cases, labels, self.max_voxels, self.store)
        _tell(self, everything, [*warnings, *([warning] if warning else [])])

    def _read_unlabelled(self) -> None:
        folder = predict_folder(self.root, self.predict_root, self.rule.layout.images)
        problems = Problems(folder)
        files = find_images(folder, problems, self.rule.layout.channel_files) or {}
        reader = CaseReader(problems, self.normalize, self.max_voxels, self._free_bytes, self.label_names)
        found = [reader.read_unlabelled(stem, paths) for stem, paths in files.items()]
        reads = [read for read in found if read is not None]
        trained = "train" in self.parts
        wanted_dim = self.dim if trained else self._wanted_dim
        wanted_channels = self.in_channels if trained else self._wanted_channels
        dim, channels = agree(reads, wanted_dim, wanted_channels, problems)
        problems.raise_if_any()
        if dim is None or channels is None:
            raise DataError(f"{folder} holds no image to predict.")
        if not trained:
            named = None if self.classes is None else LabelMap(self.classes)
            labels = self.label_names or named
            self.dim, self.in_channels, self.split_note = dim, channels, ""
            self.class_names, self.mask_values = (labels.names, labels.values) if labels else ([], [])
        self._check_spacing()
        self.parts["predict"] = Cases([read.case for read in reads], None, self.max_voxels, self.store)
        self._unprepared = reads

    def _prepare_unlabelled(self) -> None:
        """Prepare the images to predict, once; only now, because a checkpoint is read after `setup`."""
        if self._unprepared and self.preparation is None:
            learnt = self.spacing == "median" or "ct" in self.normalize
            if learnt and not is_labelled(self.root, self.rule):
                raise DataError(
                    "spacing 'median' and normalize 'ct' are learnt from training cases, but there are neither such "
                    f"cases in {self.root} nor a checkpoint that has learnt them; give one of the two."
                )
            if learnt:
                self._read_labelled()
            else:
                spacing = tuple(self.spacing) if isinstance(self.spacing, list) else None
                names = tuple(per_channel(self.normalize, self.in_channels))
                self.preparation = Preparation(self.orientation, spacing, names, (None,) * len(names))
        for read in self._unprepared:
            if self.preparation is not None:
                self._free_bytes = self.preparation.apply(read, None, self._free_bytes)
        self._unprepared = []

    def _check_spacing(self) -> None:
        if isinstance(self.spacing, list) and len(self.spacing) != self.dim:
            raise ValueError(f"spacing is {self.spacing}, but the data has {self.dim} axes; give one number an axis.")


@rank_zero_only
def _tell(data: ImageMaskFolderData, reads: Sequence[ReadCase], warnings: Sequence[str]) -> None:
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in data.class_fractions.items())
    rank_zero_info(f"Split: {data.split_note}. Classes: {shares}.")
    if data.preparation is not None and data.preparation.spacing is not None:
        rank_zero_info(f"Spacing: {' x '.join(f'{h:.4g}' for h in data.preparation.spacing)} ({data.spacing}).")
    not_kept = sum(read.case.image is None for read in reads)
    if not_kept:
        use = "read at each use" if data.store is None else f"mapped from {data.store.folder}"
        warnings = [*warnings, f"{not_kept} of {len(reads)} cases exceed cache_mb and are {use}."]
    patch = data.patch_shape()
    small = [read.case.name for read in reads if any(n < p for n, p in zip(read.case.shape, patch, strict=True))]
    if small:
        edges = f"patch_size {patch} exceeds {len(small)} cases ({small[0]} first): their edges are reflected."
        warnings = [*warnings, edges]
    for line in warnings:
        _log.warning(line)


def _overlapping(masks: str | dict[str, str], classes: dict[str, int] | list[str] | None) -> LabelNames | None:
    """The labels if they may overlap: a folder each, or a channel each of one mask file."""
    if isinstance(masks, dict):
        if classes is not None:
            raise ValueError("masks names labels and classes is given too; with one folder a label leave classes out.")
        return LabelNames(masks)
    return LabelNames(classes) if isinstance(classes, list) else None
