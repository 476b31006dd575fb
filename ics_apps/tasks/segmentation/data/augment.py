"""What a training patch may undergo: the options, and the changes of intensity.

The geometric part is applied in `patches`, where image and mask share one grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ics_apps.nearest import did_you_mean


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Ranges of the random changes; each is drawn uniformly for each patch. All 0 changes nothing.

    Args:
        rotate: Largest angle in degrees, either way; None: 180 in a plane, 30 about each axis of an isotropic volume.
            A volume whose coarsest spacing exceeds 3x its finest turns in the plane of the two finer axes only.
        scale: Source voxels per patch voxel, from and to; above 1 the patch shows more.
        flip: Mirror each axis with probability 1/2.
        contrast: The patch is multiplied by U(1 - c, 1 + c), 0 <= c < 1.
        brightness: U(-b, b) is added (in standard deviations of the case), b >= 0.
        noise: Normal noise is added whose standard deviation is U(0, n), n >= 0.
        gamma: x^U(1 - g, 1 + g) over the patch's own range, mean and sd of the patch retained, 0 <= g < 1.

    Raises:
        ValueError: A number outside its range.

    Reference: ours; ranges chosen on ISBI-2012, order and retained moments after Isensee et al. 2021 (nnU-Net).
    """

    rotate: float | None = None
    scale: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    contrast: float = 0.25
    brightness: float = 0.3
    noise: float = 0.1
    gamma: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"augment scale is [{low}, {high}]; allowed are 0 < from <= to.")
        if self.rotate is not None and not 0 <= self.rotate <= 180:
            raise ValueError(f"augment rotate is {self.rotate}; allowed are 0 to 180 degrees.")
        for name, limit in (("contrast", 1.0), ("gamma", 1.0), ("brightness", float("inf")), ("noise", float("inf"))):
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"augment {name} is {getattr(self, name)}; allowed are 0 <= {name} < {limit:g}.")


NO_AUGMENTATION = Augmentation(
    rotate=0.0, scale=(1.0, 1.0), flip=False, contrast=0.0, brightness=0.0, noise=0.0, gamma=0.0
)


def make_augmentation(spec: str | Mapping[str, Any]) -> Augmentation:
    """Options from "default", "none", or a dict of options that differ from the default.

    Raises:
        ValueError: An unknown word or option, with the nearest right one.

    Example:
        >>> make_augmentation({"noise": 0.0, "scale": [1.0, 1.0]}).scale
        (1.0, 1.0)
        >>> make_augmentation({"nois": 0.0})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: augment has no option 'nois'; did you mean 'noise'? Allowed are ...
    """
    if isinstance(spec, str):
        if spec == "none":
            return NO_AUGMENTATION
        if spec == "default":
            return Augmentation()
        raise ValueError(f"augment is {spec!r}; allowed are 'default', 'none' or a dict of options.")
    names = [option.name for option in fields(Augmentation)]
    options = dict(spec)
    for name in options:
        if name not in names:
            raise ValueError(
                f"augment has no option {name!r}{did_you_mean(name, names)} Allowed are {', '.join(names)}."
            )
    if "scale" in options:
        options["scale"] = _pair(options["scale"])
    return replace(Augmentation(), **options)


def change_intensity(patch: Tensor, options: Augmentation, u: Sequence[float], generator: torch.Generator) -> Tensor:
    """Gamma, contrast, brightness, noise, in this order and in place.

    Args:
        patch: float32 (C, *S).
        options: Ranges.
        u: Four numbers in [0, 1): where in its range each change lies.
        generator: Source of the noise.

    Returns:
        The same tensor.
    """
    gamma, contrast, brightness, noise = u
    if options.gamma:
        _gamma(patch, 1 + options.gamma * (2 * gamma - 1))
    if options.contrast:
        patch *= 1 + options.contrast * (2 * contrast - 1)
    if options.brightness:
        patch += options.brightness * (2 * brightness - 1)
    if options.noise:
        patch.add_(torch.randn(patch.shape, generator=generator), alpha=options.noise * noise)
    return patch


def _gamma(patch: Tensor, exponent: float) -> None:
    low, high = patch.aminmax()
    if high <= low:
        return
    std, mean = torch.std_mean(patch)
    patch.sub_(low).div_(high - low).pow_(exponent)
    new_std, new_mean = torch.std_mean(patch)
    patch.sub_(new_mean).mul_(std / new_std.clamp_min(1e-8)).add_(mean)


def _pair(scale: Any) -> tuple[float, float]:
    if not isinstance(scale, Sequence) or isinstance(scale, str) or len(scale) != 2:
        raise ValueError(f"augment scale is {scale!r}; allowed are two numbers, from and to.")
    return float(scale[0]), float(scale[1])
