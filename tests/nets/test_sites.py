"""What the norm of a site means for its neighbours."""

from __future__ import annotations

import pytest
from torch import nn

from ics_apps.nets.sites import Site, norms_by_site
from ics_apps.norms import NormError


@pytest.mark.parametrize(
    ("spec", "absorbs"),
    [
        ("batch", True),
        ("layer_c", True),
        ({"name": "group", "affine": False}, False),
        ("rms", False),
        ("none", False),
        ("dyt", False),
        ("batch_frozen", False),
        (lambda channels, dim: nn.BatchNorm2d(channels), False),
    ],
)
def test_a_bias_before_a_norm_is_redundant_only_if_the_norm_promises_a_shift(spec, absorbs):
    assert Site("encoder level 0", spec, 2).absorbs_bias == absorbs


def test_only_filter_response_contains_its_activation():
    assert Site("encoder level 0", "filter_response", 2).contains_activation
    assert not Site("encoder level 0", "batch", 2).contains_activation


def test_an_error_begins_with_the_site():
    with pytest.raises(NormError, match=r"^encoder level 0: 6 channels cannot be split into 8 equal groups"):
        Site("encoder level 0", "group", 2).norm(6)


def test_an_unknown_site_names_the_nearest():
    with pytest.raises(
        NormError, match=r"unknown site 'decodr' in site_norms; did you mean 'decoder'\? Sites: encoder, dec"
    ):
        norms_by_site("batch", {"decodr": "none"}, ("encoder", "decoder"))


def test_a_norm_on_weights_is_attached_to_the_layer_before_its_site():
    conv = nn.Conv2d(3, 8, 3)
    norm = Site("encoder level 0", "weight_standardization", 2).norm(8, conv)
    assert norm.attached
    assert conv.weight.mean((1, 2, 3)).abs().max() < 1e-6


def test_a_norm_on_weights_without_a_layer_is_refused():
    with pytest.raises(NormError, match=r"^encoder level 0: norm 'weight_norm' acts on the weight.*there is none here"):
        Site("encoder level 0", "weight_norm", 2).norm(8)
