"""Intensities: what each name does, and that CT takes equally from each case."""

from __future__ import annotations

import numpy as np
import pytest

from ics_apps.tasks.segmentation.data.cases import Case
from ics_apps.tasks.segmentation.data.intensity import (
    check_normalize,
    ct_statistics,
    foreground_sample,
    moments,
    per_channel,
)

IMAGE = np.random.default_rng(0).normal(7, 3, (2, 20, 30)).astype(np.float32)


def normalized(image: np.ndarray, normalize: str | list[str]) -> np.ndarray:
    return Case("a", image.shape[1:], (1.0, 1.0), *moments(image, normalize), image).normalized(image)


def test_case_has_mean_0_and_sd_1_in_each_channel() -> None:
    result = normalized(IMAGE, "case")
    np.testing.assert_allclose(result.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std((1, 2)), 1, atol=1e-5)


def test_unit_runs_from_0_to_1() -> None:
    result = normalized(IMAGE, "unit")
    assert (result.min(), result.max()) == (0, 1)
    assert not normalized(np.full((1, 3, 3), 9.0), "unit").any()


def test_nonzero_moments_leave_the_zeros_out() -> None:
    image = np.zeros((1, 10, 10), np.float32)
    image[0, :3, :3] = np.arange(9).reshape(3, 3) + 1
    mean, std = moments(image, "zscore_nonzero")
    assert mean[0] == pytest.approx(5)
    assert std[0] == pytest.approx(np.std(np.arange(9)))
    assert moments(np.zeros((1, 4, 4)), "zscore_nonzero")[1].tolist() == [1]


def test_channels_may_differ() -> None:
    result = normalized(IMAGE, ["none", "unit"])
    np.testing.assert_array_equal(result[0], IMAGE[0])
    assert (result[1].min(), result[1].max()) == (0, 1)
    with pytest.raises(ValueError, match="normalize has 3 entries, but the images have 2 channels"):
        per_channel(["case"] * 3, 2)


def test_limits_come_before_the_mean_and_zeros_may_stay() -> None:
    image = np.array([[-2000.0, 0.0, 40.0, 3000.0]])
    case = Case("a", (4,), (1.0,), np.array([50.0], np.float32), np.array([10.0], np.float32), image)
    case.clip = np.array([[-100.0, 200.0]], np.float32)
    assert case.normalized(image).tolist() == [[-15.0, -5.0, -1.0, 15.0]]
    case.clip, case.zero_stays = None, np.array([True])
    assert case.normalized(image)[0, 1] == 0


def test_ct_takes_equally_many_voxels_from_a_small_and_a_large_case() -> None:
    small, large = np.full((1, 2, 2), 10.0), np.full((1, 100, 100), 20.0)
    samples = [foreground_sample(image, np.ones(image.shape[1:], bool), 2) for image in (small, large)]
    assert samples[0] is not None
    assert samples[1] is not None
    low, high, mean, std = ct_statistics([samples[0], samples[1]], 0)
    assert (low, high, mean, std) == (10, 20, 15, 5)
    assert foreground_sample(small, np.zeros((2, 2), bool), 2) is None


def test_ct_limits_are_the_percentiles_of_the_foreground() -> None:
    image = np.arange(10_001, dtype=np.float32).reshape(1, -1)
    sample = foreground_sample(image, np.ones(10_001, bool), 1)
    assert sample is not None
    low, high, mean, _ = ct_statistics([sample], 0)
    assert (low, high, mean) == pytest.approx((50, 9950, 5000), abs=1)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"normalize is 'cas'; allowed are case, .* did you mean 'case'"):
        check_normalize("cas")
    with pytest.raises(ValueError, match="normalize is None"):
        check_normalize([])
