"""Which tensors of a file belong to which of a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ics_apps.nets import UNet
from ics_apps.runs.weight_matching import adapt_input_channels, match_weights

timm = pytest.importorskip("timm")


class Around(nn.Module):
    """A model that keeps an encoder some levels down, beside a head of its own."""

    def __init__(self, encoder, classes=3):
        super().__init__()
        self.net = nn.Module()
        self.net.encoder = encoder
        self.head = nn.Linear(7, classes)


def named(**shapes):
    return {name.replace("__", "."): torch.rand(shape) for name, shape in shapes.items()}


def small(in_channels=1, classes=2, **options):
    return UNet(in_channels, classes, **{"width": 4, "depth": 2, **options})


def test_a_model_fits_itself():
    state = small().state_dict()
    match = match_weights(state, state)
    assert list(match.tensors) == list(state)
    assert all(torch.equal(match.tensors[name], state[name]) for name in state)
    assert (match.renamed, match.adapted, match.other_shape, match.unused) == (("", ""), {}, {}, [])


@pytest.mark.parametrize("prefix", ["model.", "module.", "net._orig_mod."])
def test_a_prefix_of_the_file_is_dropped(prefix):
    state = small().state_dict()
    match = match_weights(state, {prefix + name: value for name, value in state.items()})
    assert set(match.tensors) == set(state)
    assert match.renamed == (prefix, "")


def test_an_encoder_finds_its_place_inside_a_larger_model():
    encoder = timm.create_model("resnet10t", features_only=True)
    weights = timm.create_model("resnet10t").state_dict()
    match = match_weights(Around(encoder).state_dict(), weights)
    assert match.renamed == ("", "net.encoder.")
    assert set(match.tensors) == {f"net.encoder.{name}" for name in encoder.state_dict()}
    assert match.unused == ["fc.weight", "fc.bias"]


def test_of_a_whole_net_only_the_encoder_is_taken_where_only_that_is_there():
    encoder = timm.create_model("resnet10t", features_only=True)
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    match = match_weights(encoder.state_dict(), weights | named(decoder__0__conv__weight=(4, 4, 3, 3)))
    assert match.renamed == ("encoder.", "")
    assert match.unused == ["decoder.0.conv.weight"]


def test_a_last_word_in_common_is_no_match():
    # Every layer has a `weight`; of the same shape it may still be any layer.
    match = match_weights(named(net__head__weight=(2, 3)), named(fc__weight=(2, 3)))
    assert match.tensors == {}


def test_other_classes_leave_the_head_and_name_it():
    match = match_weights(small(classes=3).state_dict(), small(classes=2).state_dict())
    assert match.other_shape == {
        "head.weight": "(2, 4, 1, 1) there, (3, 4, 1, 1) here",
        "head.bias": "(2,) there, (3,) here",
    }
    assert "head.weight" not in match.tensors


@pytest.mark.parametrize(("before", "now"), [(1, 3), (3, 1), (3, 4), (2, 2)])
@pytest.mark.parametrize("fold", [1, 2])
def test_a_net_with_other_input_channels_answers_as_before_to_one_image_in_all_of_them(before, now, fold):
    old, new = small(before, fold=fold).double().eval(), small(now, fold=fold).double().eval()
    match = match_weights(new.state_dict(), old.state_dict(), block=fold**2)
    new.load_state_dict(match.tensors)
    image = torch.randn(1, 1, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(
        new(image.expand(-1, now, -1, -1)), old(image.expand(-1, before, -1, -1)), rtol=0, atol=1e-12
    )
    told = {} if before == now else {"encoder.0.conv1.weight": f"mean of {before} input channels for {now}"}
    assert match.adapted == told


def test_a_wider_net_is_not_taken_for_one_with_other_input_channels():
    match = match_weights(small(width=8).state_dict(), small(width=4).state_dict())
    assert match.adapted == {}
    assert "encoder.0.conv1.weight" in match.other_shape


@given(before=st.integers(1, 6), now=st.integers(1, 6), block=st.sampled_from([1, 4]))
def test_adapted_weights_keep_their_sum_at_every_position_of_a_channel(before, now, block):
    weight = torch.rand(3, before * block, 3, dtype=torch.float64)
    adapted = adapt_input_channels(weight, now * block, block)
    assert adapted.shape == (3, now * block, 3)
    sums = [tensor.reshape(3, -1, block, 3).sum(1) for tensor in (weight, adapted)]
    torch.testing.assert_close(*sums, rtol=0, atol=1e-12)
