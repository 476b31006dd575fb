"""The attention gate by its formula, and where it stands among the norms of the streams."""

from __future__ import annotations

import torch
from torch import nn

from ics_apps.nets import UNet
from ics_apps.nets.attention_gate import AttentionGate, GatedConcat
from ics_apps.nets.sites import Site


def gate(norm="none", dim=2):
    torch.manual_seed(0)
    return AttentionGate(4, 6, Site("gate level 0", norm, dim)).double()


def streams():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, channels, 5, 5, dtype=torch.float64, generator=generator) for channels in (4, 6))


def test_it_is_the_formula():
    made, (x, g) = gate(), streams()
    w_x, w_g, psi = made.of_skip[0], made.of_up[0], made.psi
    alpha = torch.empty(2, 1, 5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            inside = (
                x[..., i, j] @ w_x.weight[..., 0, 0].T + w_x.bias + g[..., i, j] @ w_g.weight[..., 0, 0].T + w_g.bias
            )
            alpha[..., i, j] = torch.sigmoid(inside.relu() @ psi.weight[..., 0, 0].T + psi.bias)
    torch.testing.assert_close(made(x, g), x * alpha, rtol=0, atol=1e-12)


def test_a_gate_that_is_wide_open_changes_nothing():
    made, (x, g) = gate(), streams()
    nn.init.constant_(made.psi.bias, 1e3)
    assert torch.equal(made(x, g), x)


def test_its_norms_are_those_of_its_site_and_stand_behind_both_convolutions():
    kinds = [type(child).__name__ for part in (gate("instance").of_skip, gate("instance").of_up) for child in part]
    assert kinds == ["Conv2d", "InstanceNorm"] * 2


def test_the_gate_comes_behind_the_norms_of_the_streams():
    # A norm of each position would undo a gate before it.
    x, g = streams()
    concat = GatedConcat({"skip": 4, "up": 6}, {"skip": "rms", "up": "none"}, 2, gate()).double()
    skip = concat(skip=x, up=g)[:, :4]
    assert torch.equal(skip, concat.skip(x) * concat.gate.alpha(concat.skip(x), g))


def test_a_net_without_attention_has_no_gate():
    assert not any(isinstance(m, AttentionGate) for m in UNet(1, 2, width=4, depth=2).modules())
    gated = UNet(1, 2, norm="instance", width=4, depth=2, attention="gate")
    assert sum(isinstance(m, AttentionGate) for m in gated.modules()) == 2
