from __future__ import annotations

import pytest
import torch

from ics_apps.tasks.segmentation.losses import ClDiceLoss
from ics_apps.tasks.segmentation.losses.cldice import soft_skeleton


def _certain(target: torch.Tensor) -> torch.Tensor:
    return 400.0 * torch.stack([1 - 2 * target, 2 * target - 1], 1)


def _line(dim: int) -> torch.Tensor:
    target = torch.zeros(1, *(7,) * dim, dtype=torch.long)
    target[(0, *(3,) * (dim - 1))] = 1
    return target


@pytest.mark.parametrize("dim", [2, 3])
def test_a_line_and_itself_cost_nothing(dim: int) -> None:
    target = _line(dim)
    assert float(ClDiceLoss()(_certain(target), target)) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_the_skeleton_of_a_line_is_the_line(dim: int) -> None:
    line = _line(dim).float()[None]
    assert torch.equal(soft_skeleton(line, 3), line)


def test_a_tube_of_another_width_keeps_its_centre_line_and_a_cut_does_not() -> None:
    target = torch.zeros(1, 11, 20, dtype=torch.long)
    target[0, 4:7] = 1
    wide, cut = torch.zeros_like(target), target.clone()
    wide[0, 3:8] = 1
    cut[0, :, 8:12] = 0
    loss = ClDiceLoss(iterations=5)
    assert float(loss(_certain(wide), target)) < 0.02
    assert float(loss(_certain(cut), target)) > 0.08


def test_missing_all_and_finding_all_of_a_line_follow_the_formula() -> None:
    # Nothing found: the prediction's skeleton is empty, so precision is 1; sensitivity is 1 / (7 + 1).
    target = _line(2)
    found = float(ClDiceLoss()(_certain(target * 0), target))
    assert found == pytest.approx(1 - 2 * (1 / 8) / (1 + 1 / 8), rel=1e-6)


def test_too_few_erosions_leave_the_inside_of_a_thick_tube_out() -> None:
    tube = torch.zeros(1, 1, 15, 30)
    tube[0, 0, 3:12] = 1
    assert soft_skeleton(tube, 2)[0, 0, 7].max() == 0
    assert soft_skeleton(tube, 4)[0, 0, 7].max() == 1


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("smooth", -1.0)])
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        ClDiceLoss(**{name: value})
