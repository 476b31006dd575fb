"""The prediction of whole cases as the options say: windows or tiles, symmetries, members. No losses, no files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ics_apps.tasks.segmentation.data.grid import Grid, restore
from ics_apps.tasks.segmentation.inference.ensemble import entropy, load_member, mutual_information
from ics_apps.tasks.segmentation.inference.given_moments import fixed_statistics
from ics_apps.tasks.segmentation.inference.global_statistics import global_statistics
from ics_apps.tasks.segmentation.inference.options import InferenceOptions
from ics_apps.tasks.segmentation.inference.receptive_field import needed_halo, net_stride
from ics_apps.tasks.segmentation.inference.sliding_window import sliding_window, tiled
from ics_apps.tasks.segmentation.inference.test_time import Symmetry, equal_planes, symmetries
from ics_apps.tasks.segmentation.inference.windows import tiles

_EVERY: Final = 10.0  # seconds between two lines about a long prediction


class Prediction(NamedTuple):
    r"""What a net, or several, make of images.

    Attributes:
        logits: (B, K, \*S); their softmax (sigmoid for labels) is the probability. Where several passes are averaged
            it is the probabilities that are, and this is their logarithm (log odds).
        uncertainty: (B, \*S) in nats, if asked for.
    """

    logits: Tensor
    uncertainty: Tensor | None = None

    def restored(self, grid: Grid | None) -> Prediction:
        """The same on the grid of the case's file, on which it is scored and written."""
        of_file = None if self.uncertainty is None else restore(self.uncertainty.unsqueeze(1), grid).squeeze(1)
        return Prediction(restore(self.logits, grid), of_file)


class Predictor:
    """Predicts whole images with a net.

    Passes: symmetries x members, each of all windows; with `stats: global` and tiles each of these also sweeps the
    image, see `global_statistics`.

    Args:
        net: Maps (B, C, *S) to logits (B, K, *S); the caller sets evaluation mode.
        options: How.
        multi_label: Each channel is a label of its own: probabilities are sigmoids.

    Raises:
        ValueError: The options do not fit the image or the net.

    Example:
        >>> from ics_apps.nets import UNet
        >>> net = UNet(1, 2, width=2, depth=1).eval()
        >>> predict = Predictor(net, InferenceOptions(roi=[16, 16], flips=True))
        >>> predict(torch.rand(1, 1, 20, 30)).logits.shape
        torch.Size([1, 2, 20, 30])
    """

    def __init__(self, net: nn.Module, options: InferenceOptions, *, multi_label: bool = False) -> None:
        self.net = net
        self.options = options
        self.multi_label = multi_label
        self._members: list[nn.Module] | None = None
        self._halo: list[int] | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor, spacing: Sequence[float] | None = None) -> Prediction:
        r"""Predict with all that the options ask for.

        Args:
            image: (B, C, \*S).
            spacing: Distance of positions on each axis; rotations need it.
        """
        views = self._symmetries(image.dim() - 2, spacing)
        nets = [self.net, *self._loaded(image.device)]
        if len(views) == len(nets) == 1:
            logits = self._logits(self.net, image)
            certain = self.options.uncertainty == "none"
            return Prediction(logits, None if certain else self._uncertainty([self.probabilities(logits)]))
        members = [self._mean_over_views(net, image, views) for net in nets]
        mean = torch.stack(members).mean(0)
        return Prediction(self._to_logits(mean), self._uncertainty(members))

    @torch.no_grad()
    def window(self, image: Tensor) -> Tensor:
        r"""Logits (B, K, \*S) by this net alone in one view: what validation during training needs."""
        return self._logits(self.net, image)

    def outputs(self, found: Prediction) -> dict[str, Tensor]:
        r"""What is written of a prediction.

        Returns:
            `mask`: class indices (B, \*S), or labels (B, K, \*S) of 0 and 1; with the options, `probabilities`
            (B, K, \*S) and `uncertainty` (B, \*S), in float32.
        """
        outputs = {"mask": self.mask(found.logits)}
        if self.options.probabilities:
            outputs["probabilities"] = self.probabilities(found.logits).float()
        if found.uncertainty is not None:
            outputs["uncertainty"] = found.uncertainty.float()
        return outputs

    def mask(self, logits: Tensor) -> Tensor:
        r"""Class indices (B, \*S), or labels (B, K, \*S) of 0 and 1."""
        return (logits > 0).to(torch.uint8) if self.multi_label else logits.argmax(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        r"""(B, K, \*S), in float32 at least."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide.sigmoid() if self.multi_label else wide.softmax(1)

    def _mean_over_views(self, net: nn.Module, image: Tensor, views: Sequence[Symmetry]) -> Tensor:
        first, *others = views
        total = self._in_view(net, image, first)
        for view in others:
            total = total + self._in_view(net, image, view)
        return total / len(views)

    def _in_view(self, net: nn.Module, image: Tensor, view: Symmetry) -> Tensor:
        return view.undo(self.probabilities(self._logits(net, view.apply(image))))

    def _logits(self, net: nn.Module, image: Tensor) -> Tensor:
        options = self.options
        progress = _SlowProgress()
        if options.roi is None:
            logits: Tensor = net(image)
            return logits
        if options.blending != "exact":
            return sliding_window(
                image, net, options.roi, overlap=options.overlap, blending=options.blending,
                batch_size=options.batch_size, device=options.device, progress=progress,
            )  # fmt: skip
        stride = net_stride(net)
        self._check_roi(image.dim() - 2)
        parts = tiles(image.shape[2:], options.roi, self._halos(image), stride)
        tables = global_statistics(net, image, parts, stride, progress).tables if self._sweeps(len(parts)) else {}
        with fixed_statistics(net, tables):
            return tiled(image, net, parts, device=options.device, progress=progress)

    def _sweeps(self, number: int) -> bool:
        # One tile is the whole image, which has its own statistics.
        return self.options.stats == "global" and number > 1

    def _check_roi(self, dim: int) -> None:
        roi = self.options.roi or []
        if len(roi) != dim:
            raise ValueError(f"inference.roi {roi} has {len(roi)} sizes; give one for each of the {dim} axes of space")

    def _halos(self, image: Tensor) -> list[int]:
        dim = image.dim() - 2
        if self.options.halo is not None:
            return [self.options.halo] * dim
        if self._halo is None:
            self._halo = needed_halo(self.net, image.shape[1], dim)
        return self._halo

    def _symmetries(self, dim: int, spacing: Sequence[float] | None) -> list[Symmetry]:
        flips = self.options.flips
        axes = (list(range(dim)) if flips else []) if isinstance(flips, bool) else flips
        if self.options.rotations and spacing is None:
            raise ValueError("inference.rotations needs the spacing of the image, and the data does not give it")
        planes = equal_planes([float(s) for s in spacing]) if self.options.rotations and spacing is not None else []
        return symmetries(dim, axes, planes)

    def _loaded(self, device: torch.device) -> list[nn.Module]:
        if self._members is None:
            self._members = [load_member(self.net, path) for path in self.options.members]
        return [member.to(device) for member in self._members]

    def _to_logits(self, probabilities: Tensor) -> Tensor:
        least = torch.finfo(probabilities.dtype).eps
        log = probabilities.clamp_min(least).log()
        return log - (1 - probabilities).clamp_min(least).log() if self.multi_label else log

    def _uncertainty(self, members: Sequence[Tensor]) -> Tensor | None:
        if self.options.uncertainty == "none":
            return None
        if self.options.uncertainty == "entropy":
            return entropy(torch.stack(list(members)).mean(0), multi_label=self.multi_label)
        return mutual_information(members, multi_label=self.multi_label)


class _SlowProgress:
    """Says every ten seconds how far a prediction is; nothing about a short one."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            rank_zero_info(f"predicted {done} of {total} windows")
