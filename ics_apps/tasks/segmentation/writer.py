"""Write what the segmentation task sees: panels of tested cases for the report, and predictions of inputs."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ics_apps.runs.atomic import write_atomically, write_text_atomically
from ics_apps.runs.layout import PANELS, PANELS_INDEX, PREDICTIONS
from ics_apps.tasks.segmentation.data.grid import restore
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
        facts, image = _facts(pl_module), restore(batch["image"], batch["grid"][0])[0]
        prediction, truth = _one_label(outputs, facts), _one_label(batch["mask"], facts)
        dice, _ = overlap(case_counts(prediction, truth, len(facts["class_names"]) + facts["multi_label"]))
        score = float(dice.nanmean()) if not dice.isnan().all() else 1.0
        views = _views(image, truth[0].clamp_min(0), prediction[0])
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
    """Write each prediction to `<run>/predictions`, named like its input.

    ==================  =======================================  ==================  =================
    output              holds                                    of a NIfTI          of another image
    ==================  =======================================  ==================  =================
    mask                values of the training masks             NIfTI               TIFF, PNG, NPZ
    probabilities       float32, one a class (the last axis of   `.probabilities`    `.probabilities`
                        the NIfTI, the first of the array)       `.nii.gz`           `.npz`
    uncertainty         float32, nats                            `.uncertainty`      `.uncertainty`
                                                                 `.nii.gz`           `.tif`
    ==================  =======================================  ==================  =================

    A NIfTI has the affine, header, size and voxel order of its input; that of a DICOM series has all but the header.
    Labels that exclude none another are written as one mask of 0 and 1 for each, `<input>.<label>`.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, batch_indices: Any, batch: Any,
        batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Write the predictions of one batch: a tensor of masks, or a dict as of `Predictor.outputs`."""
        folder = Path(trainer.default_root_dir) / PREDICTIONS
        folder.mkdir(parents=True, exist_ok=True)
        outputs = {"mask": prediction} if isinstance(prediction, Tensor) else prediction
        facts = _facts(pl_module)
        for row, source in enumerate(map(Path, batch["source"])):
            arrays = {name: values[row].cpu().numpy() for name, values in outputs.items()}
            grid = batch["grid"][row] if "grid" in batch else None
            affine = None if grid is None else grid.affine
            by_label = len(outputs["mask"].shape) == batch["image"].dim()
            _write_masks(folder, source, arrays["mask"], by_label, facts, affine)
            if "probabilities" in arrays:
                write_probabilities(folder, source, arrays["probabilities"], facts["class_names"], affine)
            if "uncertainty" in arrays:
                write_map(folder, source, "uncertainty", arrays["uncertainty"], affine)


def write_mask(
    folder: Path, source: Path, mask: NDArray[Any], name: str = "", affine: NDArray[np.float64] | None = None
) -> Path:
    r"""Write `mask` (file values, \*S) into `folder`, by the name of `source` or another; returns the file.

    Raises:
        ValueError: The source is a NIfTI of another size.
    """
    mask = mask.astype(np.uint8 if mask.max(initial=0) <= np.iinfo(np.uint8).max else np.int32)
    path = folder / (name or source.name)
    if _is_nifti(source):
        _write_nifti(path, source, mask)
    elif source.is_dir():
        path = path.with_name(f"{path.name}.nii.gz")
        _write_series(path, mask, affine)
    elif mask.ndim > 2 and source.name.lower().endswith((".npy", ".npz")):
        path = path.with_suffix(".npz")
        write_atomically(path, lambda file: np.savez_compressed(file, mask=mask))
    elif source.name.lower().endswith((".tif", ".tiff")):
        from tifffile import imwrite

        imwrite(path, mask, compression="zlib")
    else:
        path = path.with_suffix(".png")
        Image.fromarray(mask).save(path)
    return path


def write_probabilities(
    folder: Path,
    source: Path,
    values: NDArray[np.float32],
    class_names: Sequence[str],
    affine: NDArray[np.float64] | None = None,
) -> Path:
    r"""Write probabilities (K, \*S): a NIfTI beside a NIfTI, else an NPZ of `probabilities` and `class_names`."""
    if _is_nifti(source) or source.is_dir():
        return write_map(folder, source, "probabilities", np.moveaxis(values, 0, -1), affine)
    path = folder / f"{_stem(source)}.probabilities.npz"
    names = np.asarray(class_names)
    write_atomically(
        path, lambda file: np.savez_compressed(file, probabilities=values.astype(np.float32), class_names=names)
    )
    return path


def write_map(
    folder: Path, source: Path, kind: str, values: NDArray[Any], affine: NDArray[np.float64] | None = None
) -> Path:
    r"""Write a map (\*S) in float32: a NIfTI beside a NIfTI, which may have a further axis, else a TIFF."""
    values = values.astype(np.float32)
    if _is_nifti(source) or source.is_dir():
        path = folder / f"{_stem(source)}.{kind}.nii.gz"
        if source.is_dir():
            _write_series(path, values, affine)
        else:
            _write_nifti(path, source, values)
        return path
    from tifffile import imwrite

    path = folder / f"{_stem(source)}.{kind}.tif"
    imwrite(path, values, compression="zlib")
    return path


def _write_masks(
    folder: Path,
    source: Path,
    mask: NDArray[Any],
    by_label: bool,
    facts: dict[str, Any],
    affine: NDArray[np.float64] | None,
) -> None:
    if not by_label:
        write_mask(folder, source, np.asarray(facts["mask_values"])[mask], affine=affine)
        return
    suffixes = "".join(source.suffixes[-2:]) if _is_nifti(source) else source.suffix
    for name, labels in zip(facts["class_names"], mask, strict=True):
        write_mask(folder, source, labels, f"{_stem(source)}.{name}{suffixes}", affine)


def _one_label(masks: Tensor, facts: dict[str, Any]) -> Tensor:
    """Class indices to colour: of labels that overlap the last one, on a background."""
    if not facts["multi_label"]:
        return masks
    numbers = torch.arange(1, masks.shape[1] + 1, device=masks.device).view(-1, *[1] * (masks.dim() - 2))
    return ((masks > 0) * numbers).amax(1)


def _is_nifti(source: Path) -> bool:
    return source.name.lower().endswith((".nii", ".nii.gz"))


def _stem(source: Path) -> str:
    """The name without its format; that of a folder as it is.

    Example:
        >>> _stem(Path("a/case.1.nii.gz")), _stem(Path("b.png"))
        ('case.1', 'b')
    """
    if source.is_dir():
        return source.name
    return source.name[: -len(".nii.gz")] if source.name.lower().endswith(".nii.gz") else source.stem


def _facts(pl_module: LightningModule) -> dict[str, Any]:
    facts: dict[str, Any] = pl_module.facts  # type: ignore[assignment]
    return facts


def _write_nifti(path: Path, source: Path, values: NDArray[Any]) -> None:
    """Write values on the voxels of `source`, with one further axis at most."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("NIfTI files need nibabel: pip install 'ics-apps[medical]'") from error
    image: Any = nibabel.load(source)
    size = tuple(image.shape[:3])
    # Readers drop trailing axes of one voxel; the file keeps them.
    if size[2:] == (1,) and values.shape[2:3] != (1,):
        values = np.expand_dims(values, 2)
    if values.shape[: len(size)] != size:
        raise ValueError(f"{source.name} has {size} voxels and its prediction {values.shape}; it cannot be overlaid")
    header = image.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the grey levels in which to show the input
    nibabel.save(nibabel.Nifti1Image(values, image.affine, header), path)  # type: ignore[no-untyped-call]


def _write_series(path: Path, values: NDArray[Any], affine: NDArray[np.float64] | None) -> None:
    """Write values on the voxels of a DICOM series, whose affine the reader has worked out, as a NIfTI."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values, affine), path)  # type: ignore[no-untyped-call]


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
