from __future__ import annotations

import pytest
import torch

from ics_apps.tasks.segmentation.inference.test_time import equal_planes, symmetries


@pytest.mark.parametrize(
    ("dim", "flips", "planes", "number"),
    [
        (1, [0], [], 2),
        (2, [0, 1], [], 4),
        (3, [0, 1, 2], [], 8),
        (2, [], [(0, 1)], 4),
        (2, [0], [(0, 1)], 8),
        (3, [0, 1, 2], [(0, 1)], 16),
        (3, [], [(0, 1), (0, 2), (1, 2)], 24),
        (3, [0], [(0, 1), (0, 2), (1, 2)], 48),
    ],
)
def test_the_number_of_symmetries_is_that_of_their_group(
    dim: int, flips: list[int], planes: list[tuple[int, int]], number: int
) -> None:
    found = symmetries(dim, flips, planes)
    image = torch.randn(1, 1, *[3] * dim)
    assert len({tuple(view.apply(image).flatten().tolist()) for view in found}) == len(found) == number


def test_the_first_is_the_identity_and_each_is_undone() -> None:
    image = torch.randn(2, 1, 3, 4, 5)
    views = symmetries(3, [0, 2], [(0, 1), (1, 2)])
    assert torch.equal(views[0].apply(image), image)
    assert all(torch.equal(view.undo(view.apply(image)), image) for view in views)


def test_a_quarter_turn_is_that_of_torch() -> None:
    image = torch.randn(1, 1, 3, 4)
    turned = [view.apply(image) for view in symmetries(2, planes=[(0, 1)])]
    for times in range(4):
        assert any(torch.equal(torch.rot90(image, times, (2, 3)), view) for view in turned)


def test_only_planes_of_equal_spacing_are_turned() -> None:
    assert equal_planes([1.0, 1.0, 1.0]) == [(0, 1), (0, 2), (1, 2)]
    assert equal_planes([5.0, 0.5, 0.50004]) == [(1, 2)]
    assert equal_planes([1.0, 1.1]) == []


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="axis 2 is not one of the 2 axes"):
        symmetries(2, [2])
