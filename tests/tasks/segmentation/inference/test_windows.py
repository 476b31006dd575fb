from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.tasks.segmentation.inference.windows import overlapping, tiles


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 0.95))
def test_windows_cover_every_position_and_stay_inside(length: int, roi: int, overlap: float) -> None:
    length = max(length, roi)
    covered = np.zeros(length, int)
    for (window,) in overlapping([length], [roi], overlap):
        assert window.start >= 0
        assert window.stop <= length
        assert window.stop - window.start == roi
        covered[window] += 1
    assert covered.min() >= 1


def test_windows_that_fit_exactly_do_not_overlap() -> None:
    assert overlapping([8, 6], [4, 3], 0.0) == [(slice(i, i + 4), slice(j, j + 3)) for i in (0, 4) for j in (0, 3)]


@given(st.integers(1, 200), st.integers(0, 10), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_cores_cover_the_image_once_with_full_halos_on_the_grid(length: int, halo: int, stride: int, more: int) -> None:
    reach = -(-halo // stride) * stride
    roi = 2 * reach + stride * (1 + more)
    covered = np.zeros(length, int)
    for tile in tiles([length], [roi], [halo], stride):
        (window,), (core,) = tile.window, tile.core
        covered[core] += 1
        assert window.stop - window.start <= roi
        assert window.start % stride == core.start % stride == 0
        assert window.start == 0 or core.start - window.start >= halo
        assert window.stop == length or window.stop - core.stop >= halo
        assert window.stop == length or window.stop % stride == 0
    assert (covered == 1).all()


def test_the_core_is_told_in_positions_of_its_window() -> None:
    last = tiles([20], [12], [3], 4)[-1]
    assert (last.window, last.core, last.inner) == ((slice(8, 20),), (slice(12, 20),), (slice(4, 12),))


def test_a_window_without_a_core_is_refused_with_the_least_size() -> None:
    with pytest.raises(ValueError, match="roi of at least 56 on this axis"):
        tiles([100], [48], [22], 8)
