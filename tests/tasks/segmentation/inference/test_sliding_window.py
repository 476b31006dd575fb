from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ics_apps.tasks.segmentation.inference.blending import Blending, gaussian_weights
from ics_apps.tasks.segmentation.inference.sliding_window import sliding_window, tiled
from ics_apps.tasks.segmentation.inference.windows import overlapping, tiles

RANKS = [((23,), (8,)), ((23, 9), (8, 16)), ((13, 9, 7), (8, 4, 8))]


def identity(windows: Tensor) -> Tensor:
    return windows


@pytest.mark.parametrize(("size", "roi"), RANKS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
def test_the_net_that_does_nothing_returns_the_image(
    size: tuple[int, ...], roi: tuple[int, ...], overlap: float, blending: Blending
) -> None:
    image = torch.randn(2, 3, *size)
    found = sliding_window(image, identity, roi, overlap=overlap, blending=blending)
    assert found.shape == image.shape
    assert torch.allclose(found, image, atol=1e-6)


def test_two_windows_are_averaged_by_their_weights() -> None:
    """Window 0 says 0 and window 1 says 1: the result is the second one's share of the weights."""
    answers = iter([0.0, 1.0])
    found = sliding_window(torch.zeros(1, 1, 6), lambda w: torch.full_like(w, next(answers)), [4],
                           overlap=0.5, batch_size=1)[0, 0]  # fmt: skip
    weights = gaussian_weights([4])
    shares = weights[:2] / (weights[:2] + weights[2:])
    assert torch.allclose(found, torch.cat([torch.zeros(2), shares, torch.ones(2)]))


def test_a_small_image_is_padded_with_zeros_the_smaller_half_first() -> None:
    seen = []

    def watch(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows

    assert torch.equal(sliding_window(torch.ones(1, 1, 3), watch, [6], blending="constant"), torch.ones(1, 1, 3))
    assert seen[0].tolist() == [[[0, 1, 1, 1, 0, 0]]]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_size_of_a_batch_of_windows_changes_nothing(batch_size: int) -> None:
    image = torch.randn(2, 1, 21)
    found = sliding_window(image, torch.tanh, [8], batch_size=batch_size)
    assert torch.allclose(found, sliding_window(image, torch.tanh, [8], batch_size=2))


def test_half_precision_outputs_are_added_in_single_precision() -> None:
    found = sliding_window(torch.full((1, 1, 64), 1 / 3), lambda w: w.bfloat16(), [8], overlap=0.9)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(1 / 3).bfloat16().float())


def test_the_result_lies_in_memory_as_the_outputs_do() -> None:
    image = torch.randn(1, 3, 12, 12)
    last = sliding_window(image, lambda w: w.contiguous(memory_format=torch.channels_last), [8, 8])
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, image)


def test_progress_counts_the_windows_of_all_samples() -> None:
    told: list[tuple[int, int]] = []
    sliding_window(torch.zeros(2, 1, 8), identity, [4], overlap=0, batch_size=3,
                   progress=lambda *now: told.append(now))  # fmt: skip
    assert told == [(3, 4), (4, 4)]


def test_an_output_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the size of its window"):
        sliding_window(torch.zeros(1, 1, 8, 8), lambda w: w[..., ::2], [4, 4])
    with pytest.raises(ValueError, match="one for each of 2 axes"):
        sliding_window(torch.zeros(1, 1, 8, 8), identity, [4])


def test_tiles_of_a_convolution_agree_with_the_whole_to_the_last_bits() -> None:
    kernel = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    image = torch.randn(2, 1, 30, 19, dtype=torch.float64)

    def net(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, padding=2)

    exact = tiled(image, net, tiles((30, 19), (10, 8), (2, 2), 1))
    assert torch.allclose(exact, net(image), rtol=0, atol=1e-13)
    short = tiled(image, net, tiles((30, 19), (10, 8), (1, 1), 1))
    assert (short - net(image)).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("size", "roi"), RANKS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
def test_it_agrees_with_monai(size: tuple[int, ...], roi: tuple[int, ...], overlap: float, blending: Blending) -> None:
    inferers = pytest.importorskip("monai.inferers", exc_type=ImportError)
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        theirs = inferers.sliding_window_inference(image, roi, 4, torch.tanh, overlap, blending)
    assert torch.allclose(sliding_window(image, torch.tanh, roi, overlap=overlap, blending=blending), theirs, atol=1e-5)


def test_the_number_of_windows_is_that_of_the_steps() -> None:
    assert len(overlapping((512, 512), (128, 128), 0.5)) == math.prod(((512 - 128) // 64 + 1,) * 2)
