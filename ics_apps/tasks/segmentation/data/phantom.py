"""`PhantomData`: generated organs under several scanner styles; needs no download.

A case is a function of (seed, part, index). With x in [-1, 1]^D:

    u(x)   = x + sum_j a_j sin(pi k_j . x + phi_j)                 smooth random warp, j = 1..4, |k_j| <= 1.5
    f_c(x) = 1 - || diag(1/r_c) R_c (u(x) - m_c) ||                 level of an ellipsoid, > 0 inside
    y(x)   = the last class c in (body, organ, lesion) with f_c > 0, 0 (background) if there is none
    v(x)   = blend of the tissue values t = (0.1, 0.4, 0.65, 0.9) in the same order, weight sigmoid(f_c / 0.04)
    I(x)   = exp(b B(x)) (1/2 + s (v(x)^g - 1/2)) + n e(x),  e ~ N(0, 1)
    B(x)   = sum_j cos(pi q_j . x + psi_j) / 2, j = 1..4, |q_j| <= 1  bias field

The organ is two overlapping ellipsoids inside the body, the lesion a small one inside the organ. The style gives
contrast s, gamma g, bias strength b and noise n.

Reference: ours. The multiplicative bias field is the usual model of MRI (Sled et al. 1998, eq. 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from ics_apps.nearest import did_you_mean
from ics_apps.tasks.segmentation.data.cases import Case, Cases
from ics_apps.tasks.segmentation.data.intensity import PER_CASE, Normalize, check_normalize, moments
from ics_apps.tasks.segmentation.data.loaders import SegmentationData, at_least

CLASS_NAMES: Final = ("background", "body", "organ", "lesion")
_TISSUE: Final = (0.1, 0.4, 0.65, 0.9)
_EDGE: Final = 0.04
_WAVES: Final = 4
_PART_NUMBERS: Final = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True, slots=True)
class Style:
    """How a scanner shows tissue: contrast s, gamma g, bias strength b, noise n."""

    contrast: float
    gamma: float
    bias: float
    noise: float


STYLES: Final[dict[str, Style]] = {
    "reference": Style(contrast=1.0, gamma=1.0, bias=0.1, noise=0.05),
    "noisy": Style(contrast=0.6, gamma=1.0, bias=0.1, noise=0.12),
    "biased": Style(contrast=1.0, gamma=1.0, bias=0.5, noise=0.05),
    "gamma": Style(contrast=1.0, gamma=2.0, bias=0.1, noise=0.05),
    "inverted": Style(contrast=-1.0, gamma=1.0, bias=0.1, noise=0.05),
}


class PhantomData(SegmentationData):
    """Generated cases with 4 classes: background, body, organ, lesion. The formulas are in the module's docstring.

    Case i of a part has the style `styles[i % len(styles)]`; other `test_styles` make a shift from training to test.

    Args:
        dim: Axes of space, 2 or 3.
        size: Voxels along each axis, or one number for all; at least 16.
        num_cases: Training cases.
        num_val: Validation cases.
        num_test: Test cases.
        styles: Scanner styles of train and val: reference, noisy, biased, gamma, inverted.
        test_styles: Styles of test; None: those of training.
        seed: Seed of the cases and of the patches.
        normalize: "case": z-score of each case. "none": I as it is. "unit": [0, 1].
        patch_size: Voxels of a training patch along each axis; None: the size of a case.
        batch_size: Patches in a training batch.
        patches_per_epoch: Patches an epoch, rounded up to full batches; None: 16 a training case.
        augment: "default", "none", or a dict of options, see `Augmentation`.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: An argument outside its range, an unknown style.

    Example:
        >>> data = PhantomData(size=32, num_cases=2, num_val=1, num_test=1, batch_size=4)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["mask"].shape, data.class_names
        (torch.Size([4, 1, 32, 32]), torch.Size([4, 32, 32]), ['background', 'body', 'organ', 'lesion'])
    """

    def __init__(
        self,
        dim: int = 2,
        *,
        size: int | list[int] = 96,
        num_cases: int = 32,
        num_val: int = 8,
        num_test: int = 8,
        styles: list[str] | None = None,
        test_styles: list[str] | None = None,
        seed: int = 0,
        normalize: Normalize = "case",
        patch_size: int | list[int] | None = None,
        batch_size: int = 8,
        patches_per_epoch: int | None = None,
        augment: str | dict[str, Any] = "default",
        num_workers: int = 0,
    ) -> None:
        if dim not in (2, 3):
            raise ValueError(f"dim is {dim!r}; allowed are 2 and 3.")
        sizes = [size] * dim if isinstance(size, int) else list(size)
        if len(sizes) != dim:
            raise ValueError(f"size is {size}, but dim is {dim}; give one number an axis.")
        super().__init__(
            patch_size=sizes if patch_size is None else patch_size,
            batch_size=batch_size,
            patches_per_epoch=patches_per_epoch,
            augment=augment,
            num_workers=num_workers,
            seed=seed,
        )
        at_least("size", min(sizes), 16)
        check_normalize(normalize, PER_CASE)
        for name, number in (("num_cases", num_cases), ("num_val", num_val), ("num_test", num_test)):
            at_least(name, number, 1)
        self.dim = dim
        self.size = tuple(sizes)
        self.normalize = normalize
        self.counts = {"train": num_cases, "val": num_val, "test": num_test}
        self.styles = _known_styles(["reference"] if styles is None else styles)
        self.test_styles = self.styles if test_styles is None else _known_styles(test_styles)
        self.in_channels = 1
        self.class_names = list(CLASS_NAMES)
        self.mask_values = list(range(len(CLASS_NAMES)))
        self.patch_shape()
        counts = ", ".join(f"{number} {part}" for part, number in self.counts.items())
        self.split_note = f"generated (seed {seed}): {counts} cases; styles {', '.join(self.styles)}"
        if self.test_styles != self.styles:
            self.split_note += f"; test styles {', '.join(self.test_styles)}"

    def setup(self, stage: str) -> None:
        """Generate the cases of all parts, once.

        Raises:
            ValueError: For "predict": there are no files.
        """
        if stage == "predict":
            raise ValueError("PhantomData has no files to predict; use ImageMaskFolderData with predict_root.")
        if self.parts:
            return
        for part, number in self.counts.items():
            self.parts[part] = Cases([self._case(part, index) for index in range(number)])
        rank_zero_info(f"Split: {self.split_note}.")

    def _case(self, part: str, index: int) -> Case:
        styles = self.test_styles if part == "test" else self.styles
        image, mask = make_phantom(self.size, styles[index % len(styles)], (self.seed, _PART_NUMBERS[part], index))
        mean, std = moments(image, self.normalize)
        spacing = (1.0,) * self.dim
        return Case(f"{part}_{index:03d}", self.size, spacing, mean, std, image, mask)


def make_phantom(size: Sequence[int], style: str, key: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One image (1, *S) and its mask (*S); the formulas are in the module's docstring.

    The shape depends on `key` alone, so one key under two styles is one anatomy in two scanners.

    Args:
        size: S, 2 or 3 numbers.
        style: A name of `STYLES`.
        key: Numbers >= 0 that the case is a function of.

    Example:
        >>> (a, same), (b, mask) = (make_phantom((16, 16), style, (0, 1)) for style in ("reference", "inverted"))
        >>> bool((same == mask).all()), bool((a == b).all())
        (True, False)
    """
    shape_rng, scan_rng = (np.random.default_rng(np.random.SeedSequence([*key, stream])) for stream in (0, 1))
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    value = np.full(tuple(size), _TISSUE[0])
    mask = np.zeros(tuple(size), dtype=np.uint8)
    for number, level in _levels(x, shape_rng):
        mask[level > 0] = number
        value += (_TISSUE[number] - value) / (1 + np.exp(np.clip(-level / _EDGE, -50, 50)))
    look = STYLES[style]
    bias = _waves(x, scan_rng, 1.0, np.pi / 2).sum(0) / 2
    image = np.exp(look.bias * bias) * (0.5 + look.contrast * (value**look.gamma - 0.5))
    image += look.noise * scan_rng.standard_normal(image.shape)
    return image[None].astype(np.float32), mask


def _levels(x: NDArray[np.float64], rng: np.random.Generator) -> list[tuple[int, NDArray[np.float64]]]:
    dim = len(x)
    amplitude = rng.uniform(0.01, 0.04, size=(dim, _WAVES) + (1,) * dim)
    warped = x + np.stack([(a * _waves(x, rng, 1.5, 0.0)).sum(0) for a in amplitude])
    body = rng.uniform(-0.1, 0.1, dim)
    organ = body + rng.uniform(-0.18, 0.18, dim)
    away = rng.standard_normal(dim)
    away *= 0.22 / np.linalg.norm(away)
    lesion = organ + rng.uniform(-0.06, 0.06, dim)
    organ_level = np.maximum(
        _ellipsoid(warped, organ, rng.uniform(0.2, 0.32, dim), rng),
        _ellipsoid(warped, organ + away, rng.uniform(0.14, 0.22, dim), rng),
    )
    return [
        (1, _ellipsoid(warped, body, rng.uniform(0.62, 0.78, dim), rng)),
        (2, organ_level),
        (3, _ellipsoid(warped, lesion, rng.uniform(0.1, 0.16, dim), rng)),
    ]


def _waves(x: NDArray[np.float64], rng: np.random.Generator, most: float, shift: float) -> NDArray[np.float64]:
    frequency = rng.uniform(-most, most, (_WAVES, len(x)))
    phase = rng.uniform(0, 2 * np.pi, _WAVES) + shift
    return np.sin(np.pi * np.tensordot(frequency, x, 1) + phase.reshape(-1, *[1] * len(x)))


def _ellipsoid(
    x: NDArray[np.float64], centre: NDArray[np.float64], radii: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    turn, _ = np.linalg.qr(rng.standard_normal((len(x), len(x))))
    shifted = x - centre.reshape(-1, *[1] * len(x))
    radius = np.linalg.norm(np.tensordot(turn / radii[:, None], shifted, 1), axis=0)
    return np.asarray(1 - radius)


def _known_styles(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in STYLES:
            raise ValueError(f"no scanner style {name!r}{did_you_mean(name, STYLES)} Allowed are {', '.join(STYLES)}.")
    if not names:
        raise ValueError(f"styles is empty; allowed are {', '.join(STYLES)}.")
    return list(names)
