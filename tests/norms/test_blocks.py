"""Streams normalised one by one, then concatenated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ics_apps.norms import NormalizedConcat, NormError, make_norm
from ics_apps.norms.layers.batch import BatchNorm2d


def streams(skip=4, up=8):
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(3, skip + up, 6, 5, dtype=torch.float64, generator=generator)
    return {"skip": both[:, :skip], "up": 5 * both[:, skip:] + 1}


def test_children_are_named_by_their_streams():
    concat = NormalizedConcat({"skip": 4, "up": 8}, {"skip": "batch", "up": "none"})
    assert [(name, type(child)) for name, child in concat.named_children()] == [
        ("skip", BatchNorm2d),
        ("up", nn.Identity),
    ]
    assert concat.out_channels == 12


def test_one_spec_serves_all_streams():
    concat = NormalizedConcat({"skip": 4, "up": 8}, {"name": "group", "num_groups": 2})
    assert (concat.skip.num_channels, concat.up.num_channels) == (4, 8)


def test_without_norms_it_is_a_concatenation():
    x = streams()
    assert torch.equal(NormalizedConcat({"skip": 4, "up": 8})(**x), torch.cat([x["skip"], x["up"]], 1))


def test_streams_by_name_come_in_any_order_and_unnamed_in_that_of_construction():
    x = streams()
    concat = NormalizedConcat({"skip": 4, "up": 8}, "instance").double()
    assert torch.equal(concat(up=x["up"], skip=x["skip"]), concat(x["skip"], x["up"]))


def test_tokens_are_joined_along_their_last_axis():
    concat = NormalizedConcat({"image": 4, "text": 8}, "layer", "tokens")
    assert concat(torch.randn(2, 5, 4), torch.randn(2, 5, 8)).shape == (2, 5, 12)


@pytest.mark.parametrize("by_channel", ["batch", "instance"])
@pytest.mark.parametrize("training", [True, False])
def test_norms_by_channel_before_the_concat_equal_one_behind_it(by_channel, training):
    x = streams()
    concat = NormalizedConcat({"skip": 4, "up": 8}, by_channel).double()
    behind = make_norm(by_channel, 12).double()
    generator = torch.Generator().manual_seed(1)
    for child in (concat.skip, concat.up):
        nn.init.normal_(child.weight, generator=generator)
        nn.init.normal_(child.bias, generator=generator)
    behind.load_state_dict(
        {
            name: torch.cat([value, concat.up.state_dict()[name]]) if value.dim() else value
            for name, value in concat.skip.state_dict().items()
        }
    )
    joined = torch.cat([x["skip"], x["up"]], 1)
    torch.testing.assert_close(concat.train(training)(**x), behind.train(training)(joined), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("skip", "up", "same"), [(4, 8, True), (6, 6, False)])
def test_group_norm_before_equals_behind_only_if_no_group_crosses_the_border(skip, up, same):
    x, fours = streams(skip, up), {"name": "group", "num_groups": (skip + up) // 4}
    first, second = ({"name": "group", "num_groups": max(channels // 4, 1)} for channels in (skip, up))
    before = NormalizedConcat({"skip": skip, "up": up}, {"skip": first, "up": second}).double()
    behind = make_norm(fours, skip + up).double()
    joined = torch.cat([x["skip"], x["up"]], 1)
    assert torch.allclose(before(**x), behind(joined), rtol=0, atol=1e-12) == same


@pytest.mark.parametrize("across", ["layer_c", "layer_chw", "rms"])
def test_norms_over_all_channels_differ_before_and_behind_the_concat(across):
    x = streams()
    before = NormalizedConcat({"skip": 4, "up": 8}, across).double()(**x)
    behind = make_norm(across, 12).double()(torch.cat([x["skip"], x["up"]], 1))
    assert not torch.allclose(before, behind, rtol=0, atol=1e-2)


def test_channels_last_streams_give_a_channels_last_concat():
    x = {name: value.to(memory_format=torch.channels_last) for name, value in streams().items()}
    y = NormalizedConcat({"skip": 4, "up": 8}, {"skip": "instance", "up": "batch"}).double()(**x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_norm_gets_its_gradient_without_gaps(layout):
    x = {name: value.to(memory_format=layout).requires_grad_() for name, value in streams().items()}
    concat = NormalizedConcat({"skip": 4, "up": 8}, "batch").double()
    found = []
    concat.skip.register_full_backward_hook(lambda _m, _i, gradients: found.append(gradients[0]))
    y = concat(**x)
    y.backward(torch.randn_like(y))
    assert [gradient.is_contiguous(memory_format=layout) for gradient in found] == [True]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("spec", ["batch", "instance", "rms", "none"])
def test_its_gradients_are_those_of_norms_and_a_concatenation_also_twice(layout, spec):
    concat = NormalizedConcat({"skip": 4, "up": 8}, spec).double()
    x = [value.to(memory_format=layout).requires_grad_() for value in streams().values()]

    def derivatives(y):
        first = torch.autograd.grad(y.cos().sum(), x, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), x)

    plain = torch.cat([concat.skip(x[0]), concat.up(x[1])], 1)
    for a, b in zip(derivatives(concat(*x)), derivatives(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "norms", "message"),
    [
        ({}, "batch", "at least one stream, got none"),
        (
            {"skip": 4, "up": 8},
            {"skip": "batch", "pu": "none"},
            r"unknown stream 'pu'; did you mean 'up'\? Streams: skip, up",
        ),
        ({"skip": 4, "up": 8}, {"skip": "batch"}, "no norm is given for the stream 'up'; write 'up': 'none'"),
        ({"skip": 4, "up": 6}, "group", "stream 'skip': 4 channels cannot be split into 8 equal groups"),
        ({"skip": 4, "forward": 8}, "none", "'forward' cannot name a stream"),
        ({"skip": 4, "a.b": 8}, "none", r"'a\.b' cannot name a stream"),
        ({"skip": 4}, None, "a norm is a name, .* got None"),
    ],
)
def test_wrong_streams_are_refused(channels, norms, message):
    with pytest.raises(NormError, match=message):
        NormalizedConcat(channels, norms)


def test_wrong_streams_in_a_call_are_named():
    concat = NormalizedConcat({"skip": 4, "up": 8})
    x = streams()
    with pytest.raises(ValueError, match=r"expected the streams \('skip', 'up'\), got 1 unnamed and \('up',\)"):
        concat(x["skip"], up=x["up"])
    with pytest.raises(ValueError, match=r"expected the streams \('skip', 'up'\), got 1 unnamed"):
        concat(x["skip"])
