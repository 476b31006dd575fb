"""The logit of one real sample among fakes: flat for nets that look at each sample alone, telling for batch norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ics_apps.norms import make_norm
from ics_apps.probes.batch_composition import batch_composition
from ics_apps.probes.preserve import ProbeError


def pictures(batch: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    return shift + torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def discriminator(norm: str) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, 8, 3)), make_norm(norm, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Conv2d(8, 1, 3)
    )


@pytest.mark.parametrize("norm", ["none", "instance", "layer_chw", "group", "rms"])
@pytest.mark.parametrize("compositions", [1, 7, 8])
def test_a_net_that_looks_at_each_sample_alone_gives_the_same_bits(norm: str, compositions: int) -> None:
    torch.manual_seed(0)
    model = discriminator(norm)
    found = batch_composition(model, pictures(8), 2 * pictures(8, seed=1), compositions=compositions)
    assert len({point.mean for point in found.points}) == 1
    assert {point.std for point in found.points} == {0.0}
    assert (found.slope, found.slope_std) == (0.0, 0.0)
    assert {point.count for point in found.points} == {compositions}


def test_with_batch_norm_the_logit_tells_the_company() -> None:
    # x = 1 among reals that are 1 and fakes that are 0: (1 - mean) / std, the more fakes the higher.
    found = batch_composition(nn.BatchNorm1d(1), torch.ones(5, 1), torch.zeros(4, 1), shares=(0.25, 0.5, 1.0))
    assert [point.mean for point in found.points] == pytest.approx([0.5, (2 / 3) ** 0.5, 2.0], abs=1e-3)
    assert found.slope > 0
    assert found.slope_std == 0.0


def test_the_slope_has_the_spread_of_the_compositions() -> None:
    torch.manual_seed(0)
    found = batch_composition(discriminator("batch"), pictures(8), pictures(16, 3.0, 1))
    assert [point.share for point in found.points] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found.slope_std > 0
    # The same reals at every composition, in another order: no spread but rounding, where fakes have one.
    assert found.points[0].std < 1e-5 < found.points[2].std
    assert abs(found.slope) > 3 * found.slope_std / 8**0.5


@given(slope=st.floats(-5, 5), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_logit_linear_in_the_share_gives_its_slope(slope: float, seed: int) -> None:
    def logit(batch: Tensor) -> Tensor:
        return slope * batch[1:].mean() * torch.ones(len(batch), 2)

    found = batch_composition(
        nn.Identity(),
        torch.zeros(5, 1, dtype=torch.float64),
        torch.ones(9, 1, dtype=torch.float64),
        logit=logit,
        seed=seed,
    )
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.slope_std == pytest.approx(0.0, abs=1e-6)


def test_the_model_and_the_random_numbers_are_left_alone() -> None:
    model = discriminator("batch")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    first = batch_composition(model, pictures(4), pictures(4, 3.0, 1))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert batch_composition(model, pictures(4), pictures(4, 3.0, 1)) == first
    assert batch_composition(model, pictures(4), pictures(4, 3.0, 1), seed=1) != first


@pytest.mark.parametrize(
    ("real", "fake", "sentence"),
    [
        (torch.zeros(1, 2), torch.zeros(4, 2), "There are 1 real and 4 fake"),
        (torch.zeros(4, 2), torch.zeros(2, 2), "There are 4 real and 2 fake"),
        (torch.zeros(4, 2), torch.zeros(4, 3), r"shape \(2,\), a fake one \(3,\)"),
        (torch.full((4, 2), torch.nan), torch.zeros(4, 2), "is nan: measure earlier"),
    ],
)
def test_samples_that_do_not_fit_are_refused(real: Tensor, fake: Tensor, sentence: str) -> None:
    with pytest.raises(ProbeError, match=sentence):
        batch_composition(nn.Identity(), real, fake)


def test_a_logit_of_the_whole_batch_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"The logits have shape \(\) for 4 samples"):
        batch_composition(nn.Identity(), torch.zeros(4, 2), torch.zeros(4, 2), logit=lambda x: x.mean())


@pytest.mark.parametrize("options", [{"compositions": 0}, {"shares": (0.5,)}, {"shares": (0.0, 1.5)}])
def test_arguments_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give at least"):
        batch_composition(nn.Identity(), torch.zeros(4, 2), torch.zeros(4, 2), **options)
