"""Write what the segmentation task sees: panels of tested cases for the report, and masks of predicted inputs."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ics_apps.runs.atomic import write_text_atomically
from ics_apps.runs.layout import PANELS, PANELS_INDEX, PREDICTIONS
from ics_apps.tasks.segmentation.metrics import case_counts, overlap

# Colours of classes 1, 2, ...: Okabe and Ito's palette, told apart by colour-blind readers too.
_PALETTE: Final = np.array(
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]],
    dtype=np.uint8,
)
_MISSED: Final = np.array([213, 94, 0], dtype=np.uint8)
_FALSE: Final = np.array([0, 114, 178], dtype=np.uint8)


class PanelWriter(Callback):
    """Keep image, truth, prediction and errors of the worst and the best tested cases as PNG files for the report.

    Of a volume the slice (along the last axis) with the most foreground in truth or prediction is shown. Errors are
    orange where truth was missed and blue where nothing was.

    Args:
        worst: How many of the cases with the lowest mean Dice to keep.
        best: How many of those with the highest.
    """

    def __init__(self, worst: int = 4, best: int = 2) -> None:
        self._worst, self._best = worst, best
        self._low: list[tuple[float, int, dict[str, Any]]] = []
        self._high: list[tuple[float, int, dict[str, Any]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the cases of an earlier test."""
        self._low, self._high = [], []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Remember a case if it is among the worst or the best so far."""
        if not trainer.is_global_zero or not isinstance(outputs, Tensor):
            return
        classes = len(_facts(pl_module)["class_names"])
        dice, _ = overlap(case_counts(outputs, batch["mask"], classes))
        score = float(dice.nanmean()) if not dice.isnan().all() else 1.0
        views = _views(batch["image"][0], batch["mask"][0], outputs[0])
        entry = {"case": str(batch["case"][0]), "scores": {"dice": score}, "views": views}
        _keep(self._low, (-score, batch_idx, entry), self._worst)
        _keep(self._high, (score, batch_idx, entry), self._best)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the PNG files and their index, worst case first."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / PANELS
        folder.mkdir(parents=True, exist_ok=True)
        kept = {entry["case"]: entry for _, _, entry in [*self._low, *self._high]}
        index = []
        for position, entry in enumerate(sorted(kept.values(), key=lambda entry: entry["scores"]["dice"])):
            images = []
            for title, pixels in entry["views"].items():
                file = f"{position:02d}.{title}.png"
                Image.fromarray(pixels).save(folder / file)
                images.append({"title": title, "file": file})
            index.append({"case": entry["case"], "stage": "test", "scores": entry["scores"], "images": images})
        write_text_atomically(folder / PANELS_INDEX, json.dumps(index, indent=2) + "\n")


class MaskWriter(BasePredictionWriter):
    """Write each predicted mask to `<run>/predictions`, named like its input, with the values of the training masks.

    A NIfTI input gives a NIfTI mask with the same affine, header and voxel order; a TIFF gives a TIFF; any other image
    a PNG.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, batch_indices: Any, batch: Any,
        batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Write the masks of one batch."""
        values = np.asarray(_facts(pl_module)["mask_values"])
        folder = Path(trainer.default_root_dir) / PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        for classes, source in zip(prediction, batch["source"], strict=True):
            write_mask(folder, Path(source), values[classes.cpu().numpy()])


def write_mask(folder: Path, source: Path, mask: NDArray[Any]) -> Path:
    r"""Write `mask` (file values, \*S) into `folder` under the name of `source`; returns the file."""
    mask = mask.astype(np.uint8 if mask.max(initial=0) <= np.iinfo(np.uint8).max else np.int32)
    name = source.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        path = folder / source.name
        _write_nifti(path, source, mask)
    elif name.endswith((".tif", ".tiff")):
        from tifffile import imwrite

        path = folder / source.name
        imwrite(path, mask, compression="zlib")
    else:
        path = folder / f"{source.stem}.png"
        Image.fromarray(mask).save(path)
    return path


def _facts(pl_module: LightningModule) -> dict[str, Any]:
    facts: dict[str, Any] = pl_module.facts  # type: ignore[assignment]
    return facts


def _write_nifti(path: Path, source: Path, mask: NDArray[Any]) -> None:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("NIfTI files need nibabel: pip install 'ics-apps[medical]'") from error
    image: Any = nibabel.load(source)
    header = image.header.copy()
    header.set_data_dtype(mask.dtype)
    header.set_slope_inter(1, 0)
    nibabel.save(nibabel.Nifti1Image(mask, image.affine, header), path)  # type: ignore[no-untyped-call]


def _keep(heap: list[tuple[float, int, dict[str, Any]]], item: tuple[float, int, dict[str, Any]], size: int) -> None:
    if len(heap) < size:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)


def _views(image: Tensor, truth: Tensor, prediction: Tensor) -> dict[str, NDArray[np.uint8]]:
    if truth.dim() == 3:
        shown = ((truth > 0) | (prediction > 0)).sum(dim=(0, 1)).argmax()
        image, truth, prediction = image[..., shown], truth[..., shown], prediction[..., shown]
    grey = _grey(image.float().mean(0).cpu().numpy())
    true_classes, predicted = truth.cpu().numpy(), prediction.cpu().numpy()
    return {
        "image": np.repeat(grey[..., None], 3, axis=2),
        "truth": _coloured(grey, true_classes),
        "prediction": _coloured(grey, predicted),
        "errors": _errors(grey, true_classes, predicted),
    }


def _grey(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.quantile(pixels, (0.005, 0.995))
    scaled: NDArray[np.uint8] = (np.clip((pixels - low) / max(high - low, 1e-8), 0, 1) * 255).astype(np.uint8)
    return scaled


def _coloured(grey: NDArray[np.uint8], classes: NDArray[Any]) -> NDArray[np.uint8]:
    picture = np.repeat(grey[..., None], 3, axis=2)
    foreground = classes > 0
    colours = _PALETTE[(classes[foreground] - 1) % len(_PALETTE)]
    picture[foreground] = (0.45 * picture[foreground] + 0.55 * colours).astype(np.uint8)
    return picture


def _errors(grey: NDArray[np.uint8], truth: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.uint8]:
    picture = np.repeat((grey // 2 + 96)[..., None], 3, axis=2)
    picture[(truth != prediction) & (truth > 0)] = _MISSED
    picture[(truth != prediction) & (truth == 0)] = _FALSE
    return picture
