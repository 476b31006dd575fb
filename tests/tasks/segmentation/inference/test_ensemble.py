from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ics_apps.tasks.segmentation.inference.ensemble import entropy, load_member, mutual_information


def member(first: float) -> torch.Tensor:
    return torch.tensor([first, 1 - first], dtype=torch.float64).reshape(1, 2, 1)


def test_entropy_runs_from_nothing_to_the_logarithm_of_the_classes() -> None:
    assert entropy(member(1.0)).tolist() == [[0.0]]
    assert entropy(torch.full((1, 5, 1), 0.2, dtype=torch.float64)).item() == pytest.approx(math.log(5))


def test_entropy_of_labels_is_that_of_each_by_itself() -> None:
    halves = torch.full((1, 3, 1), 0.5, dtype=torch.float64)
    assert entropy(halves, multi_label=True).item() == pytest.approx(3 * math.log(2))


def test_members_that_agree_have_no_mutual_information_however_unsure() -> None:
    assert mutual_information([member(0.5)] * 3).item() == pytest.approx(0, abs=1e-15)


def test_mutual_information_is_the_entropy_of_the_mean_less_the_mean_of_the_entropies() -> None:
    by_hand = entropy(member(0.5)) - (entropy(member(0.9)) + entropy(member(0.1))) / 2
    assert torch.allclose(mutual_information([member(0.9), member(0.1)]), by_hand)
    assert mutual_information([member(1.0), member(0.0)]).item() == pytest.approx(math.log(2))


def test_a_member_has_the_weights_of_its_checkpoint_and_leaves_the_net_alone(tmp_path: Path) -> None:
    net, other = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
    before = net.weight.clone()
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {f"net.{key}": value for key, value in other.state_dict().items()}}, file)
    for path in (file, tmp_path):
        assert torch.equal(load_member(net, path).weight, other.weight)  # type: ignore[arg-type]
    assert torch.equal(net.weight, before)


def test_a_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.ckpt"
    state = {f"net.{key}": value for key, value in nn.Conv2d(1, 3, 3).state_dict().items()}
    torch.save({"state_dict": state}, file)
    with pytest.raises(ValueError, match="is of another net than this run's"):
        load_member(nn.Conv2d(1, 2, 3), file)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_member(nn.Conv2d(1, 2, 3), tmp_path / "none.ckpt")
