"""Batch norm by dimension, its frozen form and its noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ics_apps.norms import make_norm


def test_images_get_torchs_own_kernels():
    assert [type(make_norm("batch", 4, dim)) for dim in (0, 1, 2, 3)] == [
        nn.BatchNorm1d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
    ]


def test_batch_norm_of_tokens_refuses_an_image():
    with pytest.raises(ValueError, match=r"expected tokens \(B, L, C\), got 4 axes"):
        make_norm("batch", 4, "tokens")(torch.zeros(2, 3, 4, 4))


def test_batch_norm_of_tokens_equals_torchs_on_all_tokens():
    x = torch.randn(3, 5, 4)
    ours, torchs = make_norm("batch", 4, "tokens"), nn.BatchNorm1d(4)
    assert torch.equal(ours(x), torchs(x.reshape(15, 4)).reshape(3, 5, 4))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_frozen_norm_takes_over_a_trained_batch_norm():
    trained, frozen = make_norm("batch", 4), make_norm("batch_frozen", 4)
    trained(torch.randn(8, 4, 5, 5) * 3 + 1)
    with torch.no_grad():
        trained.weight.mul_(2)
        trained.bias.add_(1)
    state = trained.state_dict()
    frozen.load_state_dict(state)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(frozen.train()(x), trained.eval()(x))
    assert list(frozen.parameters()) == []
    assert "num_batches_tracked" in state


def test_a_net_of_frozen_norms_takes_over_a_net_of_trained_ones():
    trained = nn.Sequential(nn.Conv2d(1, 4, 3), make_norm("batch", 4))
    frozen = nn.Sequential(nn.Conv2d(1, 4, 3), make_norm("batch_frozen", 4))
    trained(torch.randn(8, 1, 5, 5))
    frozen.load_state_dict(trained.state_dict())
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(frozen(x), trained.eval()(x))


def test_noise_has_the_ranges_of_the_paper():
    norm = make_norm({"name": "batch_noisy", "n_mu": 0.5, "n_sigma": 1.25, "r_mu": 0.1, "r_sigma": 0.1}, 200)
    torch.manual_seed(0)
    scale, shift = norm.draw(torch.zeros(50, 200, 4, 4))
    centre, spread = shift.mean((0, 2, 3)), scale.mean((0, 2, 3))
    # The mean of 800 draws of U(-0.1, 0.1) has the standard deviation 0.1 / sqrt(3 * 800) = 0.002.
    assert centre.abs().max() <= 0.5 + 0.01
    assert centre.std().item() == pytest.approx(1 / 12**0.5, rel=0.1)
    assert (shift - centre.view(200, 1, 1)).abs().max() <= 0.1 + 0.01
    assert 1 - 0.02 <= spread.min() <= spread.max() <= 1.25 + 0.02
    assert (scale - spread.view(200, 1, 1)).std().item() == pytest.approx(0.1, rel=0.02)


def test_noise_jumps_between_steps_and_is_off_in_evaluation():
    norm = make_norm("batch_noisy", 4)
    x = torch.randn(8, 4, 5, 5)
    assert not torch.equal(norm(x), norm(x))
    assert torch.equal(norm.eval()(x), norm(x))


def test_no_noise_is_plain_batch_norm():
    silent = make_norm({"name": "batch_noisy", "n_mu": 0.0, "n_sigma": 1.0, "r_mu": 0.0, "r_sigma": 0.0}, 4)
    x = torch.randn(8, 4, 5, 5)
    torch.testing.assert_close(silent(x), make_norm("batch", 4)(x), rtol=0, atol=1e-6)
