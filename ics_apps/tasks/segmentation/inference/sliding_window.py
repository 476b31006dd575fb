"""Predict a large image by parts: overlapping windows blended, or exact tiles. The net is any function of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ics_apps.tasks.segmentation.inference.blending import Blending, window_weights
from ics_apps.tasks.segmentation.inference.windows import Slices, Tile, overlapping

Predict = Callable[[Tensor], Tensor]
"""Maps images (N, C, *S) to outputs (N, K, *S)."""

Progress = Callable[[int, int], None]
"""Called with how many windows are done and how many there are."""

_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


def sliding_window(
    image: Tensor,
    predict: Predict,
    roi: Sequence[int],
    *,
    overlap: float = 0.25,
    blending: Blending = "gaussian",
    batch_size: int = 4,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    r"""Blend the outputs of overlapping windows, in any number of axes.

    .. math:: y(x) = \sum_i w_i(x) \, f_i(x) \Big/ \sum_i w_i(x)

    over the windows i that cover x, f_i the output of window i there. An axis shorter than the window is padded with
    zeros on both sides, the smaller half first, and cropped afterwards.

    Args:
        image: (B, C, \*S).
        predict: Maps a batch of windows (N, C, \*roi) to outputs (N, K, \*roi).
        roi: Sizes of a window.
        overlap: Share of a window that its neighbour covers as well, in [0, 1); see `windows.overlapping`.
        blending: See `blending`.
        batch_size: Windows that are predicted at once.
        device: Where the result is gathered; None: where the image is.
        progress: Told after each batch of windows.

    Returns:
        (B, K, \*S) in float32 (float64 if the outputs are), in the memory format of the outputs.

    Raises:
        ValueError: An output has another size than its window.

    Example:
        >>> image = torch.rand(1, 1, 20, 30)
        >>> torch.allclose(sliding_window(image, lambda windows: windows, [8, 8]), image)
        True

    Reference: MONAI 1.6, `sliding_window_inference`, with which it agrees to rounding.
    """
    size = image.shape[2:]
    padded, crop = _padded(image, roi)
    places = overlapping(padded.shape[2:], roi, overlap)
    jobs = list(product(range(len(padded)), places))
    weights = window_weights(blending, roi)
    total, factors = None, None
    for done in range(0, len(jobs), batch_size):
        batch = jobs[done : done + batch_size]
        outputs = _predicted(predict, _cut(padded, batch, roi))
        outputs = outputs.to(device or image.device)
        if total is None or factors is None:
            total = _zeros_like(outputs, (len(padded), outputs.shape[1], *padded.shape[2:]))
            # As large as an output and laid out like it: a factor that is broadcast is multiplied at a tenth of speed.
            factors = _zeros_like(outputs, outputs[:1].shape).add_(weights.to(outputs.device))[0]
        for (n, place), output in zip(batch, outputs, strict=True):
            _of_sample(total, n, place).addcmul_(output, factors)
        if progress is not None:
            progress(min(done + batch_size, len(jobs)), len(jobs))
    if total is None:
        raise ValueError(f"there is no image in a batch of shape {tuple(image.shape)}")
    total /= _sum_of_weights(weights.to(total), padded.shape[2:], places)
    return total if total.shape[2:] == size else total[(slice(None), slice(None), *crop)]


def tiled(
    image: Tensor,
    predict: Predict,
    parts: Sequence[Tile],
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    r"""Predict each position once, by the tile whose core holds it.

    Equal to predict(image), but for rounding, if the halos cover what the net sees; see `windows.tiles`.

    Args:
        image: (B, C, \*S).
        predict: Maps (B, C, \*W) to (B, K, \*W).
        parts: The tiles of the image.
        device: Where the result is gathered; None: where the image is.
        progress: Told after each tile.

    Returns:
        (B, K, \*S) in the type of the outputs.

    Raises:
        ValueError: An output has another size than its window.
    """
    result: Tensor | None = None
    for done, tile in enumerate(parts, start=1):
        output = _predicted(predict, window_of(image, tile.window)).to(device or image.device)
        if result is None:
            result = _zeros_like(output, (len(image), output.shape[1], *image.shape[2:]))
        result[(slice(None), slice(None), *tile.core)] = output[(slice(None), slice(None), *tile.inner)]
        if progress is not None:
            progress(done, len(parts))
    if result is None:
        raise ValueError("there is no tile to predict")
    return result


def window_of(image: Tensor, window: Slices) -> Tensor:
    r"""The part of images (B, C, \*S) in a window, a view."""
    return image[(slice(None), slice(None), *window)]


def _cut(images: Tensor, batch: Sequence[tuple[int, Slices]], roi: Sequence[int]) -> Tensor:
    shape = (len(batch), images.shape[1], *roi)
    # A CPU convolves in channels_last in 0.6 to 0.8 of the time, and a net keeps the layout that it is handed.
    layout = _CHANNELS_LAST.get(images.dim()) if images.device.type == "cpu" else None
    windows = torch.empty(
        shape, dtype=images.dtype, device=images.device, memory_format=layout or torch.contiguous_format
    )
    for window, (n, place) in zip(windows, batch, strict=True):
        window.copy_(_of_sample(images, n, place))
    return windows


def _of_sample(images: Tensor, sample: int, window: Slices) -> Tensor:
    return images[sample][(slice(None), *window)]


def _predicted(predict: Predict, windows: Tensor) -> Tensor:
    outputs = predict(windows)
    if outputs.shape[2:] != windows.shape[2:] or len(outputs) != len(windows):
        raise ValueError(
            f"the net gave {tuple(outputs.shape)} for windows {tuple(windows.shape)}; an output must have the size of "
            "its window"
        )
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _padded(image: Tensor, roi: Sequence[int]) -> tuple[Tensor, Slices]:
    """The image at least as large as the window, and where the image lies in it."""
    if len(roi) != image.dim() - 2:
        raise ValueError(f"roi {list(roi)} has {len(roi)} sizes; give one for each of {image.dim() - 2} axes of space")
    before = [max(window - length, 0) // 2 for length, window in zip(image.shape[2:], roi, strict=True)]
    after = [max(window - length, 0) - b for length, window, b in zip(image.shape[2:], roi, before, strict=True)]
    crop = tuple(slice(b, b + length) for b, length in zip(before, image.shape[2:], strict=True))
    amounts = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return (F.pad(image, amounts) if any(amounts) else image), crop


def _zeros_like(outputs: Tensor, shape: Sequence[int]) -> Tensor:
    last = _CHANNELS_LAST.get(outputs.dim())
    by_positions = last is not None and outputs.is_contiguous(memory_format=last) and not outputs.is_contiguous()
    kind = last if by_positions and last is not None else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=outputs.dtype, device=outputs.device, memory_format=kind).zero_()


def _sum_of_weights(weights: Tensor, size: Sequence[int], places: Sequence[Slices]) -> Tensor:
    total = weights.new_zeros(tuple(size))
    for place in places:
        total[place] += weights
    return total
