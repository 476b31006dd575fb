"""Mask values and class indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.tasks.segmentation.data.classes import UNLABELLED, LabelMap, LabelNames, classes_from_values, value_counts


@given(
    values=st.lists(st.integers(-300, 70_000), min_size=2, max_size=40, unique=True),
    picks=st.lists(st.integers(0, 1000), min_size=1, max_size=50),
)
def test_index_of_a_value_is_its_place_in_classes(values: list[int], picks: list[int]) -> None:
    labels = LabelMap({f"c{i}": value for i, value in enumerate(values)})
    places = np.array([pick % len(values) for pick in picks])
    mask = np.array(values, dtype=np.int32)[places]
    np.testing.assert_array_equal(labels.to_index(mask), places)


def test_order_of_classes_is_the_order_of_indices() -> None:
    labels = LabelMap({"inside": 255, "membrane": 0})
    assert labels.names == ["inside", "membrane"]
    assert labels.values == [255, 0]
    assert labels.to_index(np.array([0, 255, 0], dtype=np.uint8)).tolist() == [1, 0, 1]


def test_values_of_no_class_are_named() -> None:
    assert LabelMap({"a": 0, "b": 2}).unknown({0, 1, 2, 9}) == [1, 9]


def test_a_value_given_to_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="mask value 1 to b and c; each class has its own value"):
        LabelMap({"a": 0, "b": 1, "c": 1})


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="names 1 classes; allowed are 2 to 256"):
        LabelMap({"a": 0})


def test_found_values_are_sorted_and_named() -> None:
    assert classes_from_values({255, 0}) == {"background": 0, "foreground": 255}
    assert classes_from_values([7, 0, 2]) == {"background": 0, "class_2": 2, "class_7": 7}


def test_grey_levels_are_no_labels() -> None:
    assert len(classes_from_values(range(32))) == 32
    with pytest.raises(ValueError, match=r"33 distinct values, more than 32: .* \(smoothed edges or JPEG\)"):
        classes_from_values(range(33))


def test_a_single_value_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="single value 0"):
        classes_from_values([0, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_counts_add_up_to_the_voxels(dtype: type) -> None:
    assert value_counts(np.array([[3, 0, 3], [3, 3, 200]], dtype=dtype)) == {0: 1, 3: 4, 200: 1}


def test_ignore_is_no_class_and_has_its_own_index() -> None:
    labels = LabelMap({"background": 0, "ignore": -1, "cord": 4})
    assert (labels.names, labels.values, labels.ignore) == (["background", "cord"], [0, 4], -1)
    assert labels.to_index(np.array([[0, -1, 4]])).tolist() == [[0, UNLABELLED, 1]]
    assert labels.unknown([-1, 0, 5]) == [5]
    assert labels.describe() == "background=0, cord=4, ignore=-1"
    with pytest.raises(ValueError, match="classes names 1 classes"):
        LabelMap({"background": 0, "ignore": 1})
    with pytest.raises(ValueError, match="gives mask value 1 to cord and ignore"):
        LabelMap({"background": 0, "cord": 1, "ignore": 1})


def test_labels_that_overlap_have_no_background() -> None:
    labels = LabelNames(["cord", "lesion"])
    mask = np.random.default_rng(0).integers(0, 2, (2, 3, 3), dtype=np.uint8)
    assert labels.to_index(mask) is mask
    with pytest.raises(ValueError, match="masks names the labels none; allowed are 1 to 255"):
        LabelNames([])
