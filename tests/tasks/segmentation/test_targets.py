from __future__ import annotations

import pytest
import torch

from ics_apps.tasks.segmentation.targets import IGNORE, indicators, is_multi_label


@pytest.mark.parametrize("space", [(5,), (5, 4), (5, 4, 3)])
def test_the_targets_shape_tells_classes_from_labels(space: tuple[int, ...]) -> None:
    logits = torch.zeros(2, 3, *space)
    assert not is_multi_label(logits, torch.zeros(2, *space))
    assert is_multi_label(logits, torch.zeros(2, 3, *space))


@pytest.mark.parametrize("shape", [(2, 2, 5, 4), (1, 5, 4), (2, 4, 5), (2, 5)])
def test_shapes_that_do_not_belong_together_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give class indices"):
        is_multi_label(torch.zeros(2, 3, 5, 4), torch.zeros(shape))


def test_class_indices_for_one_channel_are_refused() -> None:
    with pytest.raises(ValueError, match="softmax makes 1 everywhere"):
        is_multi_label(torch.zeros(2, 1, 5), torch.zeros(2, 5))


def test_every_known_position_has_one_class_and_an_ignored_one_none() -> None:
    target = torch.tensor([[[0, 1], [2, IGNORE]]])
    found = indicators(target, 3)
    assert found.sum(1).tolist() == [[[1, 1], [1, 0]]]
    assert found.int().argmax(1)[target != IGNORE].tolist() == [0, 1, 2]
    assert indicators(target, 3, first=1).tolist() == found[:, 1:].tolist()
