"""The LightningDataModule that both datasets share: batches from parts, whatever the parts come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ics_apps.tasks.segmentation.data.augment import make_augmentation
from ics_apps.tasks.segmentation.data.cases import Cases, WholeCases, collate_whole
from ics_apps.tasks.segmentation.data.patches import PatchDataset, PatchSampler

PATCHES_PER_CASE: Final = 16


class SegmentationData(LightningDataModule):
    """Training batches of patches, whole cases for everything else.

    Train batch: {"image": float32 (B, C, *S), "mask": int64 (B, *S)}, always B full. Val and test batch, one case:
    {"image": (1, C, *S), "mask": (1, *F), "case": [name], "spacing": float32 (1, D), "grid": [Grid]}. Predict batch:
    {"image", "case", "source": [path], "grid"}. S is the net's grid and F the file's: score and write
    `grid.restore(logits, batch["grid"][0])`. Labels that may overlap: masks (B, K, *S).

    A subclass fills `parts` and the attributes below in `setup`.

    Args:
        patch_size: Voxels along each axis, or one number for all.
        batch_size: B.
        patches_per_epoch: Patches an epoch, rounded up to full batches; None: 16 a training case.
        augment: "default", "none", or a dict of the options of `Augmentation`.
        num_workers: Worker processes of each loader.
        seed: Seed of the patches.
        foreground: Share of the patches that hold foreground for certain, 0 <= f <= 1; see `PatchDataset`.

    Raises:
        ValueError: A number outside its range, an unknown option of `augment`.
    """

    dim: int
    in_channels: int
    class_names: list[str]
    mask_values: list[int]
    split_note: str
    multi_label: bool = False

    def __init__(
        self,
        *,
        patch_size: int | list[int] = 128,
        batch_size: int = 8,
        patches_per_epoch: int | None = None,
        augment: str | dict[str, Any] = "default",
        num_workers: int = 0,
        seed: int = 0,
        foreground: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= foreground <= 1:
            raise ValueError(f"foreground is {foreground}; allowed are 0 to 1.")
        sizes = [patch_size] if isinstance(patch_size, int) else list(patch_size)
        at_least("patch_size", min(sizes, default=0), 1)
        at_least("batch_size", batch_size, 1)
        at_least("num_workers", num_workers, 0)
        at_least("seed", seed, 0)
        if patches_per_epoch is not None:
            at_least("patches_per_epoch", patches_per_epoch, 1)
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.patches_per_epoch = patches_per_epoch
        self.augmentation = make_augmentation(augment)
        self.num_workers = num_workers
        self.seed = seed
        self.foreground = foreground
        self.parts: dict[str, Cases] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        """Patches; see `PatchDataset`."""
        cases = self._part("train")
        dataset = PatchDataset(cases, self.patch_shape(), self.augmentation, self.seed, self.foreground)
        replicas, rank = _processes()
        patches = self.patches_per_epoch or PATCHES_PER_CASE * len(cases)
        sampler = PatchSampler(patches, self.batch_size, replicas, rank)
        return self._loader(dataset, batch_size=self.batch_size, sampler=sampler, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole cases of the val part."""
        return self._loader(WholeCases(self._part("val")), batch_size=1, collate_fn=collate_whole)

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole cases of the test part; of val where there is no test part."""
        cases = self.parts.get("test") or self._part("val")
        return self._loader(WholeCases(cases), batch_size=1, collate_fn=collate_whole)

    def patch_shape(self) -> tuple[int, ...]:
        """The patch size with one number an axis; valid after `setup`.

        Raises:
            ValueError: The number of entries is not the number of axes of the data.
        """
        if isinstance(self.patch_size, int):
            return (self.patch_size,) * self.dim
        if len(self.patch_size) != self.dim:
            raise ValueError(
                f"patch_size is {self.patch_size}, but the data has {self.dim} axes; give one number an axis."
            )
        return tuple(self.patch_size)

    def _part(self, name: str) -> Cases:
        if name not in self.parts:
            raise RuntimeError(f"{type(self).__name__} has no {name} cases yet; call setup() first.")
        return self.parts[name]

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: a loader would otherwise draw from the global one at each start.
            generator=torch.Generator(),
            **options,
        )


def at_least(name: str, value: float, low: float) -> None:
    """Refuse a number below its range.

    Raises:
        ValueError: With the name, the value and the range.
    """
    if value < low:
        raise ValueError(f"{name} is {value}; allowed are {low} and above.")


def report_fractions(names: Sequence[str], counts: Mapping[int, int]) -> tuple[dict[str, float], str | None]:
    """Share of each class, and one line of warning when a foreground class holds more than half.

    Args:
        names: Class names in order of the index, the first the background.
        counts: Class index -> voxels.

    Example:
        >>> fractions, warning = report_fractions(["membrane", "inside"], {0: 22, 1: 78})
        >>> fractions
        {'membrane': 0.22, 'inside': 0.78}
        >>> warning
        "class 'inside' covers 78.0 % of the voxels: is it the background? The first entry of classes is."
    """
    total = max(1, sum(counts.values()))
    fractions = {name: counts.get(index, 0) / total for index, name in enumerate(names)}
    for name in list(names)[1:]:
        if fractions[name] > 0.5:
            share = f"{100 * fractions[name]:.1f} %"
            hint = "is it the background? The first entry of classes is."
            return fractions, f"class {name!r} covers {share} of the voxels: {hint}"
    return fractions, None


def report_labels(names: Sequence[str], counts: Mapping[int, int], voxels: int) -> tuple[dict[str, float], str | None]:
    """Share of all voxels that each label covers, and one line of warning when a label has none.

    Args:
        names: The labels.
        counts: Number of the label -> its voxels.
        voxels: Of all cases together.

    Example:
        >>> report_labels(["cord", "lesion"], {0: 10, 1: 0}, 100)
        ({'cord': 0.1, 'lesion': 0.0}, "label 'lesion' covers no voxel of any case.")
    """
    fractions = {name: counts.get(index, 0) / max(1, voxels) for index, name in enumerate(names)}
    empty = [name for name, share in fractions.items() if share == 0]
    return fractions, f"label {empty[0]!r} covers no voxel of any case." if empty else None


def _processes() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


def _as_it_is(batch: Any) -> Any:
    return batch
