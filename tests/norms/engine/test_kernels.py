"""When torch's fused kernels are asked for their moments, and when these say that digits are lost."""

from __future__ import annotations

import pytest
import torch

from ics_apps.norms import make_norm
from ics_apps.norms.engine import kernels
from ics_apps.norms.engine.kernels import MOST_IN_ROWS, lost_digits, reveals_moments


def moments(mean_by_sigma, dtype=torch.float32):
    """Two channels, of which one has the given |mean| / sigma."""
    return torch.tensor([0.0, -2 * mean_by_sigma], dtype=dtype), torch.tensor([1.0, 0.5], dtype=dtype)


@pytest.mark.parametrize("most", [MOST_IN_ROWS, *kernels.MOST_IN_CHANNELS_LAST.values()])
def test_digits_are_lost_beyond_the_limit_in_any_channel(most):
    assert not lost_digits(*moments(most), most)
    assert lost_digits(*moments(most * 1.01), most)


def test_float64_has_digits_to_lose():
    assert not lost_digits(*moments(1e6, torch.float64), MOST_IN_ROWS)


def test_of_a_nan_nothing_is_left_to_lose():
    assert not lost_digits(*moments(float("nan")), MOST_IN_ROWS)


def test_tensors_of_a_graph_are_looked_at_without_a_warning():
    mean, rstd = moments(100)
    assert lost_digits(mean.requires_grad_(), rstd, MOST_IN_ROWS)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("spec", ["batch", {"name": "group", "num_groups": 2}])
@pytest.mark.parametrize("mean_by_sigma", [0.9, 1.9, 3.9, 7.9, 8.1, 50])
def test_on_both_sides_of_a_limit_the_result_has_its_digits(layout, spec, mean_by_sigma):
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    x, norm = (noise + mean_by_sigma).contiguous(memory_format=layout), make_norm(spec, 4)
    expected = norm.double()(x.double())
    error = (norm.float()(x).double() - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() <= 5e-6


def test_moments_are_asked_for_eagerly_on_a_cpu_with_something_to_do():
    assert reveals_moments(torch.ones(2, 3))
    assert not reveals_moments(torch.ones(0, 3))
    assert not reveals_moments(torch.ones(2, 3, device="meta"))


def test_moments_are_not_asked_for_under_transforms_and_forward_mode():
    seen = []

    def look(x):
        seen.append(reveals_moments(torch.ones(2)))
        return x.sum()

    torch.func.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(3))
    with torch.autograd.forward_ad.dual_level():
        look(torch.ones(3))
    assert seen == [False] * 3
    assert reveals_moments(torch.ones(2))
