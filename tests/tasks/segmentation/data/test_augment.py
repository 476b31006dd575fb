"""Options of the augmentation and the changes of intensity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ics_apps.tasks.segmentation.data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    change_intensity,
    make_augmentation,
)

HALF = [0.5, 0.5, 0.5, 0.5]


def change(patch: torch.Tensor, options: Augmentation, u: list[float]) -> torch.Tensor:
    return change_intensity(patch.clone(), options, u, torch.Generator().manual_seed(0))


def test_dict_changes_the_named_options_only() -> None:
    options = make_augmentation({"noise": 0.0, "scale": [0.5, 2]})
    assert options == Augmentation(noise=0.0, scale=(0.5, 2.0))


def test_none_changes_nothing() -> None:
    patch = torch.randn(1, 4, 4)
    assert torch.equal(change(patch, make_augmentation("none"), [0.1, 0.2, 0.3, 0.4]), patch)


def test_middle_of_the_ranges_leaves_contrast_brightness_and_gamma() -> None:
    patch = torch.randn(1, 4, 4)
    options = Augmentation(noise=0.0, gamma=0.5)
    torch.testing.assert_close(change(patch, options, HALF), patch)


def test_contrast_multiplies_and_brightness_adds() -> None:
    patch = torch.ones(1, 2, 2)
    options = Augmentation(contrast=0.25, brightness=0.3, noise=0.0)
    assert change(patch, options, [0.5, 0.0, 0.5, 0.0]).unique().item() == pytest.approx(0.75)
    assert change(patch, options, [0.5, 0.5, 1.0, 0.0]).unique().item() == pytest.approx(1.3)


def test_noise_has_the_drawn_standard_deviation() -> None:
    options = Augmentation(contrast=0.0, brightness=0.0, noise=0.4)
    noise = change(torch.zeros(1, 200, 200), options, [0.5, 0.5, 0.5, 0.25])
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)


def test_gamma_keeps_mean_and_standard_deviation_and_order() -> None:
    options = Augmentation(contrast=0.0, brightness=0.0, noise=0.0, gamma=0.5)
    patch = torch.randn(1, 8, 8)
    changed = change(patch, options, [0.9, 0.5, 0.5, 0.5])
    assert not torch.allclose(changed, patch, atol=1e-2)
    torch.testing.assert_close(torch.stack(torch.std_mean(changed)), torch.stack(torch.std_mean(patch)))
    assert torch.equal(changed.flatten().argsort(), patch.flatten().argsort())


def test_gamma_leaves_a_constant_patch() -> None:
    options = Augmentation(contrast=0.0, brightness=0.0, noise=0.0, gamma=0.5)
    assert torch.equal(change(torch.ones(1, 4, 4), options, [0.9, 0.5, 0.5, 0.5]), torch.ones(1, 4, 4))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("defualt", "augment is 'defualt'; allowed are 'default', 'none'"),
        ({"contrst": 0.1}, "no option 'contrst'; did you mean 'contrast'"),
        ({"scale": 1.2}, "scale is 1.2; allowed are two numbers"),
        ({"scale": [1.2, 0.8]}, "allowed are 0 < from <= to"),
        ({"rotate": 270}, "rotate is 270; allowed are 0 to 180 degrees"),
        ({"noise": -0.1}, "noise is -0.1; allowed are 0 <= noise < inf"),
        ({"contrast": 1.0}, "contrast is 1.0; allowed are 0 <= contrast < 1"),
    ],
)
def test_options_outside_their_range_are_refused(spec: str | dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_augmentation(spec)


def test_no_augmentation_is_the_word_none() -> None:
    assert make_augmentation("none") == NO_AUGMENTATION
