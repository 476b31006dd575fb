"""Layers without statistics."""

from __future__ import annotations

import torch
from torch import nn

from ics_apps.norms import make_norm


def test_none_is_the_identity_without_parameters():
    layer = make_norm("none", 4)
    x = torch.randn(2, 4, 3, 3)
    assert isinstance(layer, nn.Identity)
    assert layer(x) is x


def test_dynamic_tanh_starts_at_its_alpha_and_squashes():
    layer = make_norm({"name": "dyt", "alpha": 0.25}, 4)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(x), torch.tanh(0.25 * x))
    assert layer(x * 1e6).abs().max() <= 1
