"""Running statistics against batches, and the noise of batch statistics against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ics_apps.norms import list_norms, make_norm, norm_entry
from ics_apps.norms.convert.adapters import RankAdapter
from ics_apps.probes.activations.norm_state import (
    Grid,
    batch_moments,
    batch_noise,
    has_running_statistics,
    is_scale_invariant,
    pools_batch,
    running_gap,
    running_var_gap,
)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_batch_moments_come_back_from_what_batch_norm_did_to_its_buffers(momentum: float) -> None:
    norm, x = nn.BatchNorm2d(5, momentum=momentum), 3 + 2 * torch.randn(8, 5, 6, 6)
    norm(torch.randn(8, 5, 6, 6))
    old_mean, old_var = norm.running_mean.clone(), norm.running_var.clone()
    norm(x)
    mean, var = batch_moments(old_mean, old_var, norm.running_mean, norm.running_var, momentum)
    assert mean == pytest.approx(x.mean((0, 2, 3)).numpy(), rel=1e-5)
    assert var == pytest.approx(x.var((0, 2, 3)).numpy(), rel=1e-5)


def test_the_running_gap_is_the_median_distance_in_running_deviations() -> None:
    gap = running_gap([0.0, 0.0, 1.0], [4.0, 4.0, 4.0], [0.1, 0.2, 1.6], momentum=0.1, eps=0.0)
    assert gap == pytest.approx(1.0)


def test_the_variance_gap_is_the_median_log_ratio_whatever_its_sign() -> None:
    # Batch variances of 2, 1/2 and 1.
    gap = running_var_gap([1.0, 1.0, 1.0], [1.5, 0.75, 1.0], momentum=0.5, eps=1e-12)
    assert gap == pytest.approx(math.log(2))
    assert running_var_gap([1.0, 4.0], [1.0, 4.0], momentum=0.1) == 0.0


def test_the_variance_gap_of_a_channel_that_became_constant_is_bounded_by_eps() -> None:
    assert running_var_gap([1.0], [0.9 - 1e-7], momentum=0.1, eps=1e-5) == pytest.approx(math.log(1e5), rel=1e-4)


def test_the_gaps_are_unknown_when_nothing_is_updated() -> None:
    assert math.isnan(running_gap([0.0], [1.0], [0.0], momentum=0.0))
    assert math.isnan(running_var_gap([1.0], [1.0], momentum=0.0))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.BatchNorm2d(4), True),
        (nn.InstanceNorm2d(4, track_running_stats=True), True),
        (make_norm("switchable", 4), True),
        (nn.BatchNorm2d(4, track_running_stats=False), False),
        (nn.LazyBatchNorm2d(), False),
        (make_norm("batch_frozen", 4), False),
        (make_norm({"name": "ghost_batch", "batch_size": 2}, 4), False),
        (make_norm({"name": "batch_per_domain", "num_domains": 2}, 4), False),
        (nn.Conv2d(1, 1, 1), False),
    ],
)
def test_layers_that_move_one_set_of_running_statistics_once_a_forward(module: nn.Module, expected: bool) -> None:
    assert has_running_statistics(module) is expected


class WithActivation(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Renamed(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.SyncBatchNorm(4), True),
        (Renamed(4), True),
        (make_norm("batch", 4), True),
        (make_norm("batch", 4, "tokens"), True),
        (make_norm("sync_batch", 4), True),
        (WithActivation(4), False),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
        (make_norm("batch_noisy", 4), False),
        (make_norm("batch_frozen", 4), False),
        (make_norm("switchable", 4), False),
        (nn.GroupNorm(2, 4), False),
    ],
)
def test_layers_whose_output_is_standardised_over_the_batch(module: nn.Module, expected: bool) -> None:
    assert pools_batch(module) is expected


@pytest.mark.parametrize("name", [name for name in list_norms() if not norm_entry(name).acts_on_weight])
def test_scale_invariance_is_what_the_registry_promises(name: str) -> None:
    entry = norm_entry(name)
    assert is_scale_invariant(make_norm(name, 8, entry.dims[-1])) is entry.scale_invariant


@pytest.mark.parametrize("norm", ["group", "dyt"])
def test_scale_invariance_is_seen_through_an_adapter(norm: str) -> None:
    assert is_scale_invariant(RankAdapter(make_norm(norm, 8, 1), 1)) is norm_entry(norm).scale_invariant


def standardised(rng: np.random.Generator, shape: tuple[int, int, int], rho: float) -> np.ndarray:
    """Random sample effects, (B, C, S), standardised over B and S."""
    batch, channels, _ = shape
    y = math.sqrt(rho) * rng.normal(size=(batch, channels, 1)) + math.sqrt(1 - rho) * rng.normal(size=shape)
    return (y - y.mean((0, 2), keepdims=True)) / y.std((0, 2), keepdims=True)


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "shape", [(2, 32, 2), (2, 32, 64), (2, 32, 1024), (3, 16, 16), (4, 64, 4), (8, 32, 64), (16, 16, 16), (64, 8, 16)]
)
def test_the_noise_is_that_of_simulated_batches(shape: tuple[int, int, int], rho: float) -> None:
    rng = np.random.default_rng(0)
    batch, _, positions = shape
    few = max(positions // 4, 1)  # four positions of each sample, as a grid reads them
    found = np.array([
        batch_noise(standardised(rng, shape, rho)[..., ::few].astype(np.float32), batch, positions) for _ in range(30)
    ])  # fmt: skip
    true = math.sqrt((1 + (positions - 1) * rho) / (batch * positions))
    # Four standard errors, and 2 % for the ratio's own bias at B = 2.
    assert found.mean() == pytest.approx(true, abs=4 * found.std() / math.sqrt(30) + 0.02 * true)


def test_the_noise_is_the_standard_deviation_of_batch_means() -> None:
    rng, (batch, positions, rho) = np.random.default_rng(1), (4, 9, 0.3)
    shape = (batch, 4000, positions)
    y = math.sqrt(rho) * rng.normal(size=(batch, 4000, 1)) + math.sqrt(1 - rho) * rng.normal(size=shape)
    z = (y - y.mean((0, 2), keepdims=True)) / y.std((0, 2), keepdims=True)
    found = batch_noise(z.astype(np.float32), batch, positions)
    assert found == pytest.approx(y.mean((0, 2)).std(), rel=0.03)


@pytest.mark.parametrize("batch", [2, 8])
def test_samples_that_are_constant_leave_as_many_values_as_samples(batch: int) -> None:
    z = np.repeat(np.array([1.0, -1.0] * (batch // 2), np.float32), 16).reshape(batch, 1, 16)
    assert batch_noise(z, batch, 16) == pytest.approx(1 / math.sqrt(batch))


def test_samples_of_one_position_leave_the_batch_and_one_sample_leaves_nothing() -> None:
    assert batch_noise(np.ones((8, 1, 1), np.float32), 16, 1) == 0.25
    assert batch_noise(np.ones((1, 1, 8), np.float32), 1, 64) == 1.0


def test_without_two_values_of_one_sample_and_channel_the_noise_is_unknown() -> None:
    assert math.isnan(batch_noise(np.ones((8, 1, 1), np.float32), 8, 64))
    assert math.isnan(batch_noise(np.full((1, 1, 8), math.nan, np.float32), 8, 64))


def test_scale_and_shift_are_taken_out_and_channels_of_vanishing_scale_are_left_out() -> None:
    rng = np.random.default_rng(2)
    z = standardised(rng, (8, 16, 16), 0.5)
    gamma, beta = rng.uniform(0.1, 3, 16) * rng.choice([-1, 1], 16), rng.normal(size=16)
    expected = batch_noise(z.astype(np.float32), 8, 16)
    y = z * gamma[:, None] + beta[:, None]
    assert batch_noise(y.astype(np.float32), 8, 16, gamma, beta) == pytest.approx(expected)
    # Eight more channels, of which rounding keeps nothing, and a value that is not finite.
    more = np.concatenate([y, np.ones_like(y[:, :8])], axis=1)
    more[0, 20, 0] = math.nan
    gamma, beta = np.append(gamma, np.full(8, 1e-9)), np.append(beta, np.ones(8))
    found = batch_noise(more.astype(np.float32), 8, 16, gamma, beta)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 6, 5, 7), 1), ((3, 11, 6), 2), ((2, 40, 3), 1), ((500, 6), 1), ((2, 300, 1, 3), 1)]
)
def test_a_grid_reads_the_values_that_its_indices_name(shape: tuple[int, ...], axis: int, channels_last: bool) -> None:
    batch, channels = shape[0], shape[axis]
    positions = math.prod(shape) // (batch * channels)
    # Each value tells its own sample and channel.
    named = torch.arange(batch)[:, None, None] * channels + torch.arange(channels)[:, None]
    x = named.expand(batch, channels, positions).reshape(
        batch, channels, *(n for k, n in enumerate(shape) if k not in (0, axis))
    )
    x = x.movedim(1, axis).float().contiguous()
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    for turn in range(3):
        grid = Grid.choose(x.shape, axis, size=64, turn=turn)
        values = grid.read(x).numpy()
        sample, channel, _ = np.ix_(grid.samples, grid.channels, grid.positions)
        assert values.reshape(grid.shape).tolist() == np.broadcast_to(sample * channels + channel, grid.shape).tolist()
        assert len(values) <= 64
        assert len(grid.positions) == min(positions, 4)


def test_successive_grids_read_other_channels() -> None:
    grids = [Grid.choose(torch.Size([8, 64, 4, 4]), 1, turn=turn) for turn in range(4)]
    assert {place for grid in grids for place in grid.channels} == set(range(64))


@pytest.mark.parametrize(("batch", "noisy"), [(2, True), (64, False)])
def test_a_small_batch_is_noisy_where_a_strided_sample_would_hold_no_pairs(batch: int, noisy: bool) -> None:
    norm = nn.BatchNorm2d(512)
    effects = torch.randn(batch, 512, 1, 1, generator=torch.Generator().manual_seed(0))
    y = norm(effects + torch.randn(batch, 512, 4, 4, generator=torch.Generator().manual_seed(1))).detach()
    grids = [Grid.choose(y.shape, 1, turn=turn) for turn in range(8)]
    found = [batch_noise(grid.read(y).numpy().reshape(grid.shape), batch, 16) for grid in grids]
    true = math.sqrt((1 + 15 * 0.5) / (16 * batch))
    # One of these readings is within 7 % at B = 2.
    assert np.mean(found) == pytest.approx(true, rel=3 * 0.07 / math.sqrt(8))
    assert (np.mean(found) > 0.25) == noisy
