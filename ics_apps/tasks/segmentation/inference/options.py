"""What a recipe may say about prediction: `--model.inference.roi '[64, 64, 16]'`. Checked here, used in `predictor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How whole cases are predicted.

    Attributes:
        roi: Sizes of the window that the net sees, one for each axis; null: the whole image in one pass.
        overlap: Share of a window that its neighbour covers as well, in [0, 1).
        blending: `gaussian` or `constant` weights of overlapping windows (their logits are averaged); `exact`: tiles
            with a halo, of which each predicts its own core only, equal to the whole image in one pass.
        halo: Positions on each side of a tile that are seen but not kept; null: as many as the net looks at, measured.
            A smaller number is faster and no longer exact.
        batch_size: Windows that are predicted at once (tiles: always one).
        stats: `window`: a norm that pools positions takes the statistics of each window; `global`: those of the whole
            image, exactly, for about half as many further predictions as the net has such norms in a chain.
        flips: true, or the axes: average over all flips of these axes at prediction (2^k passes).
        rotations: Average over quarter turns too, in planes whose axes have equal spacing.
        members: Further checkpoints (files or run directories) of the same net, averaged with this one.
        uncertainty: Write a map beside the mask: `entropy` of the averaged probabilities, or `mutual_information`, by
            which the members disagree.
        probabilities: Write the probabilities beside the mask.
        device: Where predictions are gathered, such as `cpu` for volumes too large for the GPU; null: with the image.

    Raises:
        ValueError: A value is out of its range, or two do not fit together.

    Example:
        >>> InferenceOptions(roi=[64, 64], overlap=1.0)
        Traceback (most recent call last):
        ValueError: inference.overlap is 1.0; allowed is a share in [0, 1)
    """

    roi: list[int] | None = None
    overlap: float = 0.25
    blending: Literal["gaussian", "constant", "exact"] = "gaussian"
    halo: int | None = None
    batch_size: int = 4
    stats: Literal["window", "global"] = "window"
    flips: bool | list[int] = False
    rotations: bool = False
    members: list[str] = field(default_factory=list)
    uncertainty: Literal["none", "entropy", "mutual_information"] = "none"
    probabilities: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.roi is not None and (not self.roi or min(self.roi) < 1):
            raise ValueError(f"inference.roi is {self.roi}; allowed is one size >= 1 for each axis, or null")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap is {self.overlap}; allowed is a share in [0, 1)")
        if self.batch_size < 1:
            raise ValueError(f"inference.batch_size is {self.batch_size}; allowed is 1 or more")
        if self.halo is not None and self.halo < 0:
            raise ValueError(f"inference.halo is {self.halo}; allowed is 0 or more, or null to have it measured")
        if self.halo is not None and self.blending != "exact":
            raise ValueError("inference.halo is for blending 'exact'; windows that are blended have an overlap instead")
        if self.stats == "global" and self.roi is not None and self.blending != "exact":
            raise ValueError(
                f"inference.stats 'global' needs blending 'exact', got {self.blending!r}: only tiles that count each "
                "position once have the statistics of the image"
            )
        if self.uncertainty == "mutual_information" and not self.members:
            raise ValueError(
                "inference.uncertainty 'mutual_information' is how far members disagree; name some in "
                "inference.members, or take 'entropy'"
            )
