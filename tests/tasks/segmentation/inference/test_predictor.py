from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.nets import UNet
from ics_apps.tasks.segmentation.data.grid import Grid
from ics_apps.tasks.segmentation.inference import InferenceOptions, Predictor


def net_of(norm: str = "batch") -> UNet:
    return UNet(1, 3, dim=2, norm=norm, width=8, depth=1).double().eval()


def image_of(*size: int) -> Tensor:
    return torch.randn(2, 1, *size, dtype=torch.float64) * torch.linspace(0.5, 3, size[-1])


class Fixed(nn.Module):
    """The same logits at every position."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.reshape(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


def checkpoint(path: Path, net: nn.Module) -> str:
    torch.save({"state_dict": {f"net.{key}": value for key, value in net.state_dict().items()}}, path)
    return str(path)


@torch.no_grad()
def test_without_options_it_is_the_net() -> None:
    net, image = net_of(), image_of(20, 30)
    found = Predictor(net, InferenceOptions())(image)
    assert torch.equal(found.logits, net(image))
    assert found.uncertainty is None


@torch.no_grad()
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_exact_tiles_with_the_statistics_of_the_image_are_the_whole_image(norm: str) -> None:
    net, image = net_of(norm), image_of(37, 50)
    exact = Predictor(net, InferenceOptions(roi=[24, 24], blending="exact", stats="global"))
    assert torch.allclose(exact.window(image), net(image), rtol=0, atol=1e-10)


@torch.no_grad()
def test_exact_tiles_with_their_own_statistics_are_not() -> None:
    net, image = net_of("instance"), image_of(37, 50)
    tiled = Predictor(net, InferenceOptions(roi=[24, 24], blending="exact"))
    assert (tiled.window(image) - net(image)).abs().max() > 1e-2


@torch.no_grad()
def test_flips_average_probabilities_and_make_the_prediction_follow_a_flipped_image() -> None:
    net, image = net_of(), image_of(16, 24)
    predict = Predictor(net, InferenceOptions(flips=[1]))
    found = predict(image).logits
    by_hand = (net(image).softmax(1) + net(image.flip(3)).flip(3).softmax(1)) / 2
    assert torch.allclose(found.softmax(1), by_hand)
    assert torch.allclose(predict(image.flip(3)).logits, found.flip(3))


@torch.no_grad()
def test_rotations_turn_planes_of_equal_spacing_only() -> None:
    net, image = net_of(), image_of(16, 24)
    predict = Predictor(net, InferenceOptions(rotations=True))
    assert torch.equal(predict(image, [1.0, 2.0]).logits, net(image))
    turned = predict(torch.rot90(image, 1, (2, 3)), [1.0, 1.0]).logits
    assert torch.allclose(turned, torch.rot90(predict(image, [1.0, 1.0]).logits, 1, (2, 3)))
    with pytest.raises(ValueError, match="needs the spacing"):
        predict(image)


@torch.no_grad()
def test_members_average_probabilities_and_say_how_far_they_disagree(tmp_path: Path) -> None:
    net, other = Fixed(math.log(0.9), math.log(0.1)), Fixed(math.log(0.1), math.log(0.9))
    options = InferenceOptions(members=[checkpoint(tmp_path / "b.ckpt", other)], uncertainty="mutual_information")
    found = Predictor(net, options)(image_of(2, 3))
    assert torch.allclose(found.logits.softmax(1), torch.tensor(0.5).double())
    entropy_of_one = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert found.uncertainty is not None
    assert found.uncertainty.shape == (2, 2, 3)
    assert torch.allclose(found.uncertainty, torch.tensor(math.log(2) - entropy_of_one).double())


@torch.no_grad()
def test_entropy_needs_no_members() -> None:
    found = Predictor(Fixed(0.0, 0.0), InferenceOptions(uncertainty="entropy"))(image_of(2, 3))
    assert found.uncertainty is not None
    assert torch.allclose(found.uncertainty, torch.tensor(math.log(2)).double())


@torch.no_grad()
def test_labels_are_averaged_each_by_itself() -> None:
    """One label is sure, whatever the other: its sigmoid stays, where a softmax would share."""
    predict = Predictor(Fixed(2.0, 2.0), InferenceOptions(flips=True), multi_label=True)
    assert torch.allclose(predict(image_of(4, 4)).logits, torch.tensor(2.0).double())


@torch.no_grad()
def test_validation_takes_windows_without_views_and_members() -> None:
    net, image = net_of(), image_of(20, 30)
    plain = Predictor(net, InferenceOptions(roi=[16, 16]))
    full = Predictor(net, InferenceOptions(roi=[16, 16], flips=True, members=["not there"]))
    assert torch.equal(full.window(image), plain(image).logits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"roi": [0, 4]}, r"roi is \[0, 4\]"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"halo": -1}, "halo is -1"),
        ({"halo": 4}, "halo is for blending 'exact'"),
        ({"roi": [8], "stats": "global"}, "'global' needs blending 'exact'"),
        ({"uncertainty": "mutual_information"}, "name some in inference.members"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceOptions(**values)


def test_a_roi_of_another_rank_is_refused() -> None:
    for blending in ("exact", "gaussian"):
        options = InferenceOptions(roi=[8, 8, 8], blending=blending)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one for each of"):
            Predictor(net_of(), options)(image_of(16, 16))


@torch.no_grad()
def test_the_outputs_are_those_asked_for_on_the_grid_of_the_file() -> None:
    grid = Grid((8, 12), (1.0, 1.0), spacing=(2.0, 2.0))
    options = InferenceOptions(uncertainty="entropy", probabilities=True)
    predict = Predictor(Fixed(0.0, 1.0), options)
    outputs = predict.outputs(predict(image_of(*grid.shape)).restored(grid))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {
        "mask": (2, 8, 12), "probabilities": (2, 2, 8, 12), "uncertainty": (2, 8, 12),
    }  # fmt: skip
    assert outputs["mask"].unique().tolist() == [1]
    assert torch.allclose(outputs["probabilities"].sum(1), torch.tensor(1.0))
    plain = Predictor(Fixed(0.0, 1.0), InferenceOptions())
    assert list(plain.outputs(plain(image_of(4, 4)))) == ["mask"]


@torch.no_grad()
def test_labels_are_written_where_they_are_more_likely_than_not() -> None:
    predict = Predictor(Fixed(0.1, -0.1), InferenceOptions(), multi_label=True)
    mask = predict.outputs(predict(image_of(2, 3)))["mask"]
    assert mask.shape == (2, 2, 2, 3)
    assert mask[:, 0].all()
    assert not mask[:, 1].any()
