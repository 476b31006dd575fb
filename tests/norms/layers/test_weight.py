"""Norms that act on the weight of the layer before them."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import ics_apps.norms.catalog.weight  # noqa: F401 (registers the entries)
from ics_apps.norms import NormError, make_norm, norm_entry
from ics_apps.norms.layers.weight import attach_weight_norm

NAMES = ("weight_standardization", "weight_norm", "spectral_norm")
LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv1": lambda: nn.Conv1d(6, 4, 3),
    "conv2": lambda: nn.Conv2d(6, 4, 3),
    "conv2, 1x1": lambda: nn.Conv2d(6, 4, 1),
    "conv2, groups": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "conv3": lambda: nn.Conv3d(6, 4, 2),
    "transposed1": lambda: nn.ConvTranspose1d(6, 4, 2, stride=2),
    "transposed2": lambda: nn.ConvTranspose2d(6, 4, 2, stride=2),
    "transposed2, groups": lambda: nn.ConvTranspose2d(6, 4, 2, groups=2),
    "transposed3": lambda: nn.ConvTranspose3d(6, 4, 2),
}


def build(name, kind):
    """A layer in float64 with its norm."""
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    plain = layer.weight.detach().clone()
    norm = make_norm(name, 4)
    attach_weight_norm(layer, norm)
    return layer, norm.double(), plain


def draw(kind):
    shape = (2, 6, *[4] * (0 if kind == "linear" else int(next(c for c in kind if c.isdigit()))))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def row_slices(layer):
    """The place of each output channel in the weight."""
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return [(row,) for row in range(4)]
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return [(slice(g * inputs, (g + 1) * inputs), o) for g in range(layer.groups) for o in range(outputs)]


def learned(layer):
    return {key: value for key, value in layer.named_parameters() if key != "bias"}


@pytest.mark.parametrize("kind", LAYERS)
def test_standardized_weights_equal_the_formula_row_by_row(kind):
    layer, _, plain = build("weight_standardization", kind)
    for place in row_slices(layer):
        row = plain[place].numpy()
        expected = (row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).mean() + 1e-6)
        assert np.abs(layer.weight[place].detach().numpy() - expected).max() <= 1e-12


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_norm_starts_as_the_layer_was_and_gives_each_row_its_length(kind):
    layer, _, plain = build("weight_norm", kind)
    torch.testing.assert_close(layer.weight, plain, rtol=0, atol=1e-15)
    length, direction = learned(layer).values()
    with torch.no_grad():
        length.copy_(torch.arange(1.0, 5).view_as(length))
        direction.mul_(7)
    for g, place in enumerate(row_slices(layer), start=1):
        row = plain[place].numpy()
        expected = g * row / np.sqrt((row**2).sum())
        assert np.abs(layer.weight[place].detach().numpy() - expected).max() <= 1e-12


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "transposed2, groups"])
def test_states_of_torchs_own_weight_norm_load(kind):
    layer, _, _ = build("weight_norm", kind)
    axis = 1 if kind.startswith("transposed") else 0
    torch.manual_seed(1)
    theirs = parametrizations.weight_norm(LAYERS[kind]().double(), dim=axis)
    layer.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(layer.weight, theirs.weight, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", LAYERS)
def test_spectral_norm_divides_by_the_largest_singular_value(kind):
    layer, _, plain = build("spectral_norm", kind)
    for _ in range(300):
        weight = layer.weight
    matrix = (plain.transpose(0, 1) if kind.startswith("transposed") else plain).flatten(1).numpy()
    expected = plain.numpy() / np.linalg.svd(matrix, compute_uv=False)[0]
    assert np.abs(weight.detach().numpy() - expected).max() <= 1e-12


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_activations_pass_unchanged_behind_a_layer_that_uses_the_normalised_weight(name, kind):
    layer, norm, _ = build(name, kind)
    y = layer.eval()(draw(kind))
    assert norm(y) is y
    plain = LAYERS[kind]().double()
    plain.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    assert torch.equal(plain(draw(kind)), y)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_stored_weight_does_not_matter(name, kind):
    layer, _, _ = build(name, kind)
    layer.eval()
    # weight_norm stores g first, V second; the others W alone.
    [*_, stored] = learned(layer).values()
    with torch.no_grad():
        # Variances of at least 5, against which eps is a shift of less than 1e-6.
        stored.mul_(30)
        before = layer.weight.clone()
        stored.mul_(4)
        torch.testing.assert_close(layer.weight, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_orthogonal_to_the_stored_weight(name):
    layer, norm, _ = build(name, "conv2")
    norm(layer.eval()(draw("conv2") * 10)).square().sum().backward()
    [*_, stored] = learned(layer).values()
    cosine = nn.functional.cosine_similarity(stored.grad.flatten(), stored.flatten(), 0)
    # eps leaves 1e-6 over the variance of the weights, 1/3 of 1/54.
    assert abs(cosine.item()) < (2e-3 if name == "weight_standardization" else 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_that_is_attached_to_nothing_refuses_to_run(name):
    with pytest.raises(NormError, match=rf"'{name}' acts on the weight.*attached to none; call attach_weight_norm"):
        make_norm(name, 4)(torch.zeros(1, 4, 2, 2))


def test_attaching_leaves_other_norms_alone():
    conv = nn.Conv2d(6, 4, 3)
    attach_weight_norm(conv, make_norm("batch", 4))
    assert type(conv) is nn.Conv2d


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ReLU(), "acts on the weight of a linear layer or a convolution, got ReLU"),
        (None, "acts on the weight of the layer right before it, and there is none here; take a"),
        (nn.Conv2d(6, 8, 3), r"was made for 4 channels, and Conv2d\(6, 8.* gives 8"),
        (parametrizations.weight_norm(nn.Conv2d(6, 4, 3)), "parametrized already"),
        (nn.Conv2d(4, 4, 1, groups=4), "at least two weights to an output channel.*always 0; use 'weight_norm'"),
        (nn.ConvTranspose2d(4, 4, 1, groups=4), "at least two weights to an output channel"),
        (nn.Linear(1, 4), "at least two weights to an output channel"),
    ],
)
def test_a_layer_that_cannot_be_standardised_is_refused(layer, message):
    norm = make_norm("weight_standardization", 4)
    with pytest.raises(NormError, match=message):
        attach_weight_norm(layer, norm)
    assert not norm.attached


def test_a_lazy_layer_is_refused_until_it_has_a_weight():
    layer = nn.LazyConv2d(4, 3)
    with pytest.raises(NormError, match="has no weight yet; run it once"):
        attach_weight_norm(layer, make_norm("weight_norm", 4))
    layer(torch.randn(1, 6, 4, 4))
    attach_weight_norm(layer, make_norm("weight_norm", 4))


def test_one_norm_serves_one_layer():
    norm = make_norm("weight_norm", 4)
    norm.attach(nn.Linear(6, 4))
    with pytest.raises(NormError, match="attached to a layer already; make one norm for each layer"):
        norm.attach(nn.Linear(6, 4))


def test_weight_norm_refuses_an_output_channel_of_zeros():
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight[2])
    with pytest.raises(NormError, match=r"cannot start from an output channel whose weights are all 0"):
        attach_weight_norm(layer, make_norm("weight_norm", 4))


def test_spectral_norm_refuses_no_iterations():
    with pytest.raises(NormError, match="n_power_iterations must be at least 1, got 0"):
        make_norm({"name": "spectral_norm", "n_power_iterations": 0}, 4)


def test_constant_rows_standardise_to_zero_with_finite_gradients():
    layer = nn.Linear(6, 4)
    nn.init.constant_(layer.weight, 0.5)
    attach_weight_norm(layer, make_norm("weight_standardization", 4))
    layer(torch.randn(3, 6)).square().sum().backward()
    assert torch.equal(layer.weight, torch.zeros(4, 6))
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_only_spectral_norm_moves_buffers_and_only_in_training(name):
    layer, _, _ = build(name, "conv2")
    start = {key: buffer.clone() for key, buffer in layer.named_buffers()}
    layer.eval()(draw("conv2"))
    assert all(torch.equal(buffer, start[key]) for key, buffer in layer.named_buffers())
    layer.train()(draw("conv2"))
    moved = any(not torch.equal(buffer, start[key]) for key, buffer in layer.named_buffers())
    assert moved == norm_entry(name).stateful == (name == "spectral_norm")


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_state_returns_bit_for_bit(name, kind):
    net = nn.Sequential(*build(name, kind)[:2])
    net(draw(kind))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = nn.Sequential(*build(name, kind)[:2])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert all(key.startswith("0.") for key in net.state_dict())
    assert torch.equal(fresh.eval()(draw(kind)), net.eval()(draw(kind)))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_attached_to_its_own_layer(name):
    net = nn.Sequential(*build(name, "conv2")[:2]).eval()
    twin = copy.deepcopy(net)
    assert torch.equal(twin(draw("conv2")), net(draw("conv2")))
    with torch.no_grad():
        next(iter(learned(twin[0]).values())).add_(1)
    assert not torch.equal(twin(draw("conv2")), net(draw("conv2")))
    assert twin[1].attached


@pytest.mark.parametrize("kind", ["linear", "conv2", "transposed2, groups"])
@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_are_right(name, kind):
    layer, _, _ = build(name, kind)
    # spectral_norm keeps its vectors in evaluation; its derivatives hold them fixed.
    layer.eval()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x, *given):
        return functional_call(layer, dict(zip(names, given, strict=True)), (x,))

    inputs = (draw(kind).requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "spectral_norm"])
def test_third_derivatives_in_the_stored_weight_are_right(name):
    layer, _, plain = build(name, "linear")
    generator = torch.Generator().manual_seed(0)
    direction, weights = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))

    def formula(w):
        if name == "weight_norm":
            return plain.norm(dim=1, keepdim=True) * w / (w * w).sum(1, keepdim=True) ** 0.5
        centred = w - w.sum(1, keepdim=True) / 6
        return centred / ((centred * centred).sum(1, keepdim=True) / 6 + 1e-6) ** 0.5

    def parametrized(w):
        given = (plain.norm(dim=1, keepdim=True), w) if name == "weight_norm" else (w,)
        return layer.parametrizations.weight[0](*given)

    def third(f):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        y = (f(plain + t * direction) * weights).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, t, create_graph=True)
        return y.item()

    assert norm_entry(name).thrice_differentiable
    assert third(parametrized) == pytest.approx(third(formula), rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_are_exact_up_to_rounding_where_promised(name):
    layer, _, _ = build(name, "conv2")
    layer.bfloat16().eval()
    exact = copy.deepcopy(layer).double().weight
    error = ((layer.weight.double() - exact).abs() / exact.abs()).max().item()
    assert error <= (2**-8 if norm_entry(name).exact_in_bf16 else 1e-2)


def test_float32_keeps_its_digits_where_the_mean_of_the_weights_is_33_sigma():
    layer = nn.Linear(600, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 600, generator=torch.Generator().manual_seed(0)) + 33)
    attach_weight_norm(layer, make_norm("weight_standardization", 4))
    y, exact = layer.weight.double(), copy.deepcopy(layer).double().weight
    assert ((y - exact).abs() / exact.abs().clamp_min(1)).max() <= 5e-6


@pytest.mark.parametrize("name", NAMES)
def test_autocast_trains_without_a_warning(name):
    layer, norm, _ = build(name, "conv2")
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(layer(draw("conv2").float()))
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_weights_stay_so(name):
    layer, _, _ = build(name, "conv2")
    plain = layer.weight.detach().clone()
    layer.to(memory_format=torch.channels_last)
    x = draw("conv2").contiguous(memory_format=torch.channels_last)
    assert layer.eval().weight.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.weight, plain, rtol=0, atol=1e-2 if name == "spectral_norm" else 1e-14)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_to_one_graph_of_equal_value(name, training):
    net = nn.Sequential(*build(name, "conv2")[:2]).train(training)
    twin, x = copy.deepcopy(net), draw("conv2")
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), twin(x), rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_export_gives_equal_values(name):
    net = nn.Sequential(*build(name, "conv2")[:2]).eval()
    exported = torch.export.export(net, (draw("conv2"),)).module()
    torch.testing.assert_close(exported(draw("conv2")), net(draw("conv2")), rtol=0, atol=1e-12)


def test_their_promises():
    for name in NAMES:
        entry = norm_entry(name)
        assert (entry.family, entry.pools, entry.acts_on_weight) == ("weight", (), True)
        assert entry.scale_invariant
        assert not entry.absorbs_bias
