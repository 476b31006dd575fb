"""Generated cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ics_apps.tasks.segmentation.data import PhantomData
from ics_apps.tasks.segmentation.data.phantom import CLASS_NAMES, STYLES, make_phantom

SIZE = (64, 64)


def all_masks(**options: Any) -> np.ndarray:
    data = PhantomData(size=64, num_cases=20, num_val=1, num_test=1, **options)
    data.setup("fit")
    return np.stack([np.asarray(case.mask) for case in data.parts["train"]])


def test_case_is_a_function_of_its_key() -> None:
    first, again, other = (make_phantom(SIZE, "noisy", key) for key in ((0, 1), (0, 1), (0, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_one_key_is_one_anatomy_in_all_styles() -> None:
    cases = [make_phantom(SIZE, style, (3, 0, 5)) for style in STYLES]
    assert all((mask == cases[0][1]).all() for _, mask in cases)
    assert len({image.tobytes() for image, _ in cases}) == len(STYLES)


def test_every_case_holds_all_classes_and_background_is_the_largest() -> None:
    shares = np.stack([np.bincount(mask.ravel(), minlength=4) / mask.size for mask in all_masks()])
    assert (shares > 0.002).all()
    assert (shares[:, 0] > 0.5).all()
    assert (shares[:, 1] > shares[:, 2]).all()


def test_body_leaves_the_border_free() -> None:
    masks = all_masks(seed=1)
    border = np.concatenate(
        [masks[:, 0].ravel(), masks[:, -1].ravel(), masks[:, :, 0].ravel(), masks[:, :, -1].ravel()]
    )
    assert (border > 0).mean() < 0.05


def mean_by_class(style: str) -> np.ndarray:
    image, mask = make_phantom(SIZE, style, (0, 0, 0))
    return np.array([image[0][mask == label].mean() for label in range(4)])


def test_tissue_brightens_inwards_and_the_inverted_scanner_turns_that_round() -> None:
    assert (np.diff(mean_by_class("reference")) > 0).all()
    assert (np.diff(mean_by_class("inverted")) < 0).all()


def test_noise_and_bias_are_those_of_the_style() -> None:
    def spread(style: str) -> float:
        image, mask = make_phantom((96, 96), style, (0, 0, 7))
        # Neighbours share tissue and bias, so that their difference is noise times sqrt(2).
        steps = np.diff(image[0], axis=1)[(mask[:, 1:] == 0) & (mask[:, :-1] == 0)]
        return float(np.median(np.abs(steps)) / 0.6745 / np.sqrt(2))

    assert spread("reference") == pytest.approx(STYLES["reference"].noise, rel=0.1)
    assert spread("noisy") == pytest.approx(STYLES["noisy"].noise, rel=0.1)


def test_styles_alternate_and_test_has_its_own() -> None:
    data = PhantomData(size=16, num_cases=4, num_test=1, styles=["reference", "gamma"], test_styles=["inverted"])
    data.setup("test")
    keys = [(0, 0, i) for i in range(4)] + [(0, 2, 0)]
    styles = ["reference", "gamma", "reference", "gamma", "inverted"]
    cases = [*data.parts["train"], *data.parts["test"]]
    for case, style, key in zip(cases, styles, keys, strict=True):
        np.testing.assert_array_equal(case.image, make_phantom((16, 16), style, key)[0])
    assert data.split_note.endswith("styles reference, gamma; test styles inverted")


def test_batches_follow_the_contract_in_three_dimensions() -> None:
    data = PhantomData(3, size=[16, 18, 20], num_cases=2, num_val=1, num_test=1, batch_size=2)
    assert (data.dim, data.in_channels, data.class_names) == (3, 1, list(CLASS_NAMES))
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 16, 18, 20)
    whole = next(iter(data.val_dataloader()))
    assert whole["mask"].shape == (1, 16, 18, 20)
    assert whole["case"] == ["val_000"]
    assert whole["spacing"].tolist() == [[1.0, 1.0, 1.0]]


def test_parts_are_different_cases() -> None:
    data = PhantomData(size=16, num_cases=1, num_val=1, num_test=1)
    data.setup("fit")
    assert len({data.parts[part][0].image.tobytes() for part in ("train", "val", "test")}) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"styles": ["referense"]}, "no scanner style 'referense'; did you mean 'reference'"),
        ({"styles": []}, "styles is empty; allowed are reference"),
        ({"dim": 1}, "dim is 1; allowed are 2 and 3"),
        ({"size": [32, 32, 32]}, "size is .* but dim is 2"),
        ({"size": 8}, "size is 8; allowed are 16 and above"),
        ({"num_val": 0}, "num_val is 0; allowed are 1 and above"),
        ({"normalize": "minmax"}, "normalize is 'minmax'; allowed are case, none"),
        ({"patch_size": [16, 16, 16]}, "but the data has 2 axes"),
    ],
)
def test_arguments_outside_their_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PhantomData(**options)


def test_there_is_nothing_to_predict() -> None:
    with pytest.raises(ValueError, match="no files to predict; use ImageMaskFolderData"):
        PhantomData().setup("predict")
