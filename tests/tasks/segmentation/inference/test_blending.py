from __future__ import annotations

import torch

from ics_apps.tasks.segmentation.inference.blending import gaussian_weights, window_weights


def test_the_weights_are_symmetric_and_largest_in_the_middle() -> None:
    weights = gaussian_weights([9, 16])
    assert torch.equal(weights, weights.flip(0))
    assert torch.equal(weights, weights.flip(1))
    assert weights.argmax() == 4 * 16 + 7
    assert weights.max() <= 1


def test_the_floor_stands_behind_the_product_and_holds_a_third_of_a_square_and_most_of_a_cube() -> None:
    square, cube = gaussian_weights([128] * 2), gaussian_weights([96] * 3)
    assert float(square.min()) == float(cube.min()) == torch.tensor(1e-3).item()
    assert round(float((square == square.min()).float().mean()), 2) == 0.32
    assert round(float((cube == cube.min()).float().mean()), 2) == 0.58


def test_the_peak_of_an_even_window_is_between_positions() -> None:
    assert round(float(gaussian_weights([128]).max()), 4) == 0.9995


def test_constant_weights_are_ones() -> None:
    assert torch.equal(window_weights("constant", [2, 3]), torch.ones(2, 3))
