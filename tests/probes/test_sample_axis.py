"""Where the samples of a batch are looked for, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.sample_axis import SampleAxis, is_data


def test_the_size_is_that_of_the_first_tensor_with_fractions() -> None:
    inputs = (torch.zeros(7, dtype=torch.int64), "name", None, {"x": torch.zeros(6, 3), "y": torch.zeros(5)})
    assert SampleAxis.of(inputs) == SampleAxis(axis=0, size=6, row=3)
    assert SampleAxis.of(inputs[:1], row=0) == SampleAxis(axis=0, size=7, row=0)
    assert SampleAxis.of((torch.tensor(0.5), torch.zeros(3, 4)), axis=1).size == 4


def test_masks_are_no_samples() -> None:
    assert not is_data(torch.ones(4, dtype=torch.bool))
    assert not is_data("text")
    with pytest.raises(ProbeError, match="No input tensor has an axis 0"):
        SampleAxis.of([torch.ones(4, dtype=torch.bool)])


def test_the_declared_axis_comes_before_others_of_the_same_size() -> None:
    samples = SampleAxis(axis=1, size=4, row=0)
    assert samples.axes_of(torch.zeros(4, 4, 4)) == (1, 0, 2)
    assert samples.axes_of(torch.zeros(4, 5)) == (0,)


def test_every_other_sample_is_replaced_by_one_of_the_batch() -> None:
    samples = SampleAxis(axis=1, size=3, row=2)
    assert samples.with_others_replaced(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [[2, 3, 3], [5, 6, 6]]
    without = torch.zeros(3, 2)
    assert samples.with_others_replaced(without) is without


def test_norms_are_of_samples_and_taken_in_double() -> None:
    samples = SampleAxis(axis=1, size=2, row=0)
    x = torch.tensor([[3e30, 1.0], [4e30, 0.0]])
    assert samples.norms(x, 1).tolist() == pytest.approx([5e30, 1.0])
    assert samples.norms(x.bfloat16(), 1).dtype == torch.float64


@pytest.mark.parametrize(
    ("norms", "expected"), [([2.0, 0.0], 0.0), ([2.0, 1.0], 0.5), ([0.0, 1.0], math.inf), ([0.0, 0.0], math.nan)]
)
def test_the_ratio_of_nothing_to_nothing_is_unknown(norms: list[float], expected: float) -> None:
    found = SampleAxis(axis=0, size=2, row=0).ratio(torch.tensor(norms, dtype=torch.float64))
    assert found == pytest.approx(expected, nan_ok=True)
