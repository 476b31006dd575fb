"""Distances between samples, with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ics_apps.probes.activations.drift import History, gaussian_kl, wasserstein1
from ics_apps.probes.activations.moments import NO_BOUNDS, describe

finite = st.floats(-1e3, 1e3)
positive = st.floats(1e-3, 1e3)


@given(finite, positive)
def test_a_law_is_at_distance_zero_from_itself(mean: float, var: float) -> None:
    assert float(gaussian_kl(mean, var, mean, var)) == pytest.approx(0.0, abs=1e-12)


@given(finite, positive, finite, positive)
def test_the_divergence_is_symmetric_and_not_negative(m: float, v: float, n: float, w: float) -> None:
    assert float(gaussian_kl(m, v, n, w)) == float(gaussian_kl(n, w, m, v)) >= 0


@given(positive, positive, finite)
def test_an_affine_shift_has_the_closed_form(std: float, factor: float, shift: float) -> None:
    expected = ((1 + shift**2) / factor**2 + (factor**2 + shift**2)) / 4 - 0.5
    computed = float(gaussian_kl(0.0, std**2, shift * std, (factor * std) ** 2))
    assert computed == pytest.approx(max(expected, 0), rel=1e-6, abs=1e-9)


def test_two_constants_that_differ_are_far_apart_and_finite() -> None:
    assert math.isfinite(float(gaussian_kl(0.0, 0.0, 1.0, 0.0)))
    assert float(gaussian_kl(0.0, 0.0, 1.0, 0.0)) > 1e6


def advance(history: History, *rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    distances = all_distances(history, *rows)
    return distances["drift_kl"], distances["drift_w1"]


def all_distances(history: History, *rows: torch.Tensor) -> dict[str, np.ndarray]:
    found = describe(torch.stack(rows).numpy().copy(), np.array([NO_BOUNDS] * len(rows)))
    keys = [("layer", "", call) for call in range(len(rows))]
    return history.advance(keys, found.grid, found.figures["mean"], found.figures["std"])


def test_the_first_sample_has_no_drift() -> None:
    kl, w1 = advance(History(), torch.randn(500))
    assert np.isnan(kl).all()
    assert np.isnan(w1).all()


def test_the_same_sample_again_has_drift_zero() -> None:
    history, x = History(), torch.randn(500)
    advance(history, x)
    kl, w1 = advance(history, x)
    assert (kl.item(), w1.item()) == (pytest.approx(0.0, abs=1e-12), 0.0)


def test_a_shift_by_two_deviations_is_a_distance_of_two() -> None:
    history, x = History(), torch.randn(4000, generator=torch.Generator().manual_seed(0))
    advance(history, x)
    kl, w1 = advance(history, x + 2 * x.std(correction=0))
    assert w1.item() == pytest.approx(2.0, rel=1e-5)
    assert kl.item() == pytest.approx(2.0, rel=1e-5)


def test_a_doubling_of_a_gaussian_moves_it_by_its_mean_absolute_value() -> None:
    history, x = History(), torch.randn(4000, generator=torch.Generator().manual_seed(0))
    advance(history, x)
    kl, w1 = advance(history, 2 * x)
    # E|x| = sqrt(2/pi) sigma; 64 quantiles cut a little of the tails off.
    assert w1.item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.03)
    assert kl.item() == pytest.approx(0.5625, rel=0.01)


def test_two_samples_of_one_law_stay_at_the_noise_level() -> None:
    history, generator = History(), torch.Generator().manual_seed(0)
    advance(history, torch.randn(4096, generator=generator))
    kl, w1 = advance(history, torch.randn(4096, generator=generator))
    assert w1.item() < 0.06
    assert kl.item() < 0.002


def test_calls_are_compared_with_their_own_past() -> None:
    history, x = History(), torch.randn(500)
    advance(history, x, x + 100)
    _, w1 = advance(history, x, x + 100)
    assert w1.tolist() == [0.0, 0.0]


def test_a_sample_without_finite_values_does_not_become_the_past() -> None:
    history, x = History(), torch.randn(500)
    advance(history, x)
    kl, w1 = advance(history, torch.full((500,), math.nan))
    assert np.isnan([kl.item(), w1.item()]).all()
    assert advance(history, x)[1].item() == 0.0


def test_a_constant_that_moves_has_no_distance_in_units_of_its_spread() -> None:
    history = History()
    advance(history, torch.ones(100))
    assert advance(history, torch.ones(100))[1].item() == 0.0
    assert np.isnan(advance(history, torch.full((100,), 2.0))[1].item())


def test_the_reference_stays_the_first_sample() -> None:
    history, x = History(), torch.randn(500)
    for shift in (0.0, 3.0, 1.0):
        found = all_distances(history, x + shift * x.std(correction=0))
    assert found["drift_mean"].item() == pytest.approx(2.0, rel=1e-5)
    assert found["drift_w1"].item() == pytest.approx(2.0, rel=1e-5)
    assert found["reference_mean"].item() == pytest.approx(1.0, rel=1e-5)
    assert found["reference_w1"].item() == pytest.approx(1.0, rel=1e-5)
    assert found["reference_kl"].item() == pytest.approx(0.5, rel=1e-5)


def test_the_history_survives_a_weights_only_file(tmp_path) -> None:
    history, x = History(), torch.randn(500)
    advance(history, x)
    torch.save(history.state_dict(), tmp_path / "history.pt")
    restored = History()
    restored.load_state_dict(torch.load(tmp_path / "history.pt", weights_only=True))
    again, expected = all_distances(restored, x + 1), all_distances(history, x + 1)
    assert {name: value.item() for name, value in again.items()} == {n: v.item() for n, v in expected.items()}
    assert again["drift_w1"].item() > 0


def test_wasserstein_of_sorted_samples_is_exact() -> None:
    assert float(wasserstein1([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 8.0])) == 2.0
