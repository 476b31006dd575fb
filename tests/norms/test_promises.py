"""What every entry promises, measured in every dimension it is defined for."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.func import functional_call

from ics_apps.norms import NormError, make_norm, norm_entry
from ics_apps.norms.engine import blocked
from ics_apps.norms.engine.axes import channel_axis, space_axes
from tests.norms.conftest import CHANNELS, ON_ACTIVATIONS, SHAPES, SMALL_SPECS


def run(module, x):
    """One forward pass from the same state and with the same noise each time."""
    torch.manual_seed(0)
    return copy.deepcopy(module)(x)


def as_samples_channels_positions(x, dim):
    """View any input as (B, C, S)."""
    return x.movedim(channel_axis(dim), 1).flatten(2) if space_axes(dim) else x.unsqueeze(-1)


def test_the_shape_is_kept_in_training_and_evaluation(norm, dim, layer, values):
    module, x = layer(norm, dim), values(dim)
    assert module.train()(x).shape == x.shape
    assert module.eval()(x).shape == x.shape


def test_statistics_pool_exactly_the_declared_axes(norm, dim, layer, values):
    module, x = layer(norm, dim), values(dim)
    moved = as_samples_channels_positions(x.clone(), dim)
    moved[0, 0, 0] += 10
    moved_x = moved.movedim(1, -1) if dim == "tokens" else moved.reshape(x.shape)
    changed = as_samples_channels_positions(run(module, moved_x) != run(module, x), dim)
    positions = changed.shape[2] > 1

    assert changed[0, 0, 0]
    measured = set()
    if changed[1:].any():
        measured.add("N")
    if changed[0, 2:].any():
        measured.add("C")
    elif changed[0, 1].any():
        measured.add("C/G")
    if positions and changed[0, :, 1:].any():
        measured.add("S")
    declared = set(norm_entry(norm).pools) - (set() if positions else {"S"})
    assert measured == declared


def test_a_norm_that_does_not_pool_the_batch_never_mixes_samples(norm, dim, layer, values):
    module, x, other = layer(norm, dim), values(dim), values(dim, seed=1)
    other[0] = x[0]
    same = torch.equal(run(module, x)[0], run(module, other)[0])
    assert same == (not norm_entry(norm).mixes_samples)


def test_buffers_move_in_training_only_and_only_if_stateful(norm, dim, layer, values):
    module, x = layer(norm, dim), values(dim)
    inputs = (x, 2) if norm == "virtual_batch" else (x,)
    start = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.eval()(*inputs)
    assert all(torch.equal(buffer, start[name]) for name, buffer in module.named_buffers())
    module.train()(*inputs)
    moved = any(not torch.equal(buffer, start[name]) for name, buffer in module.named_buffers())
    assert moved == norm_entry(norm).stateful


def test_scale_invariance_is_as_declared(norm, dim, layer, values):
    module, x = layer(norm, dim, **past_warmup(norm)), values(dim) * 30
    if norm == "virtual_batch":
        # With the reference forwarded along; alone, its kept moments would not scale.
        x = torch.cat([x, x])
        twice, once = module(2 * x, reference=3), module(x, reference=3)
    else:
        twice, once = run(module, 2 * x), run(module, x)
    change = (twice - once).abs().max().item()
    # The rest is eps: 1e-5 against variances of at least 30, a shift of less than 1e-6.
    assert (change < 1e-6) == norm_entry(norm).scale_invariant


def own_shift(module):
    return next(name for name, _ in module.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    # The shift of `adaptive_instance` is the style's mean.
    "absorber",
    [name for name in ON_ACTIVATIONS if norm_entry(name).absorbs_bias and name != "adaptive_instance"],
)
def test_a_norm_that_absorbs_a_bias_has_its_own_shift(absorber, layer, values):
    dim = norm_entry(absorber).dims[-1]
    module, x = layer(absorber, dim).eval(), values(dim)
    before = module(x)
    with torch.no_grad():
        if absorber.startswith("conditional"):
            module.conditional.table.weight[:, CHANNELS:] += 1
        else:
            module.get_parameter("group_bias" if absorber == "batch_channel" else own_shift(module)).add_(1)
    torch.testing.assert_close(module(x), before + 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conditional", [name for name in ON_ACTIVATIONS if norm_entry(name).needs_condition])
def test_a_norm_that_needs_a_condition_says_how_to_give_one(conditional):
    kind = {"batch_per_domain": "domain", "adaptive_instance": "style", "virtual_batch": "reference"}
    dim = norm_entry(conditional).dims[-1]
    module = make_norm(SMALL_SPECS.get(conditional, conditional), CHANNELS, dim)
    name = kind.get(conditional, "label")
    with pytest.raises(NormError, match=rf"needs a condition and got none: .*norm\(x, {name}\).*norm_context\({name}="):
        module(torch.randn(SHAPES[dim]))


def test_gradients_are_right(norm, dim, layer, values):
    module, x = layer(norm, dim), values(dim).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True) if list(module.parameters()) else ((), ())

    def call(x, *given):
        torch.manual_seed(0)
        return functional_call(module, dict(zip(names, given, strict=True)), (x,))

    # A random direction, since the plain sum of a normalised output hardly depends on its input.
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *parameters), fast_mode=True)


def test_by_blocks_of_single_samples_values_and_gradients_are_the_same(norm, dim, layer, values, monkeypatch):
    module, x = layer(norm, dim), values(dim).requires_grad_()
    weights = values(dim, seed=4)

    def value_and_gradients():
        y = run(module, x)
        torch.manual_seed(0)
        leaves = [x, *module.parameters()]
        gradients = torch.autograd.grad((module(x) * weights).sum(), leaves, allow_unused=True)
        return [y, *(g for g in gradients if g is not None)]

    start = copy.deepcopy(module.state_dict())
    whole = value_and_gradients()
    module.load_state_dict(start)
    monkeypatch.setattr(blocked, "BLOCK", 1)
    for a, b in zip(whole, value_and_gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_state_returns_bit_for_bit(norm, dim, layer, values):
    module, fresh = layer(norm, dim), layer(norm, dim)
    module.train()(values(dim))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    x = values(dim, seed=1)
    assert torch.equal(fresh.eval()(x), module.eval()(x))


@pytest.mark.parametrize("image_norm", [name for name in ON_ACTIVATIONS if 2 in norm_entry(name).dims])
@pytest.mark.parametrize(("axes", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_is_kept_and_gives_the_same_values(image_norm, axes, memory_format, layer, values):
    module, x = layer(image_norm, axes), values(axes)
    assert run(module, x.to(memory_format=memory_format)).is_contiguous(memory_format=memory_format)
    if image_norm == "batch_noisy":
        # Its noise is drawn in memory order, so only its evaluation can be compared.
        module.eval()
    y = run(module, x.to(memory_format=memory_format))
    torch.testing.assert_close(y, run(module, x), rtol=0, atol=1e-12)


def past_warmup(norm):
    """Options of a norm whose promises hold from the end of its warm-up on."""
    return {"warmup_steps": 0} if norm == "power_norm" else {}


def third_derivative_along(function, x, direction):
    """d^3/dt^3 f(x + t v) at t = 0 by three passes of automatic differentiation."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = function(x + t * direction)
    for _ in range(3):
        (value,) = torch.autograd.grad(value, t, create_graph=True)
    return value.item()


def third_difference_along(function, x, direction):
    """The same from values only: central differences of two steps, with their error of order h^2 removed."""

    def difference(h):
        ahead, behind = function(x + 2 * h * direction), function(x - 2 * h * direction)
        return (ahead - 2 * function(x + h * direction) + 2 * function(x - h * direction) - behind) / (2 * h**3)

    with torch.no_grad():
        return ((4 * difference(4e-3) - difference(8e-3)) / 3).item()


def third_derivative_is_right(module, x):
    """Whether differentiation and differences agree to 1e-4 of the larger."""
    generator = torch.Generator().manual_seed(3)
    direction, weights = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def function(x):
        return (run(module, x) * weights).sum()

    expected = third_difference_along(function, x, direction)
    try:
        found = third_derivative_along(function, x, direction)
    except RuntimeError:  # a kernel that owns up to it
        return False
    return abs(found - expected) <= 1e-4 * max(1, abs(expected))


def has_kinks(module):
    return getattr(module, "kinked", False)


LINEAR = ("none", "affine", "batch_frozen")


def test_the_third_derivative_is_right_where_promised(norm, dim, layer, values):
    module, x = layer(norm, dim, **past_warmup(norm)), values(dim)
    if norm in LINEAR or has_kinks(module) or norm == "batch_renorm":
        # Nothing to differentiate, no derivative to compare, or one that leaves r and d out by design.
        return
    assert third_derivative_is_right(module, x) == norm_entry(norm).thrice_differentiable


def test_smooth_makes_every_third_derivative_right_or_refuses_a_kink(norm, dim, layer, values):
    spec = SMALL_SPECS.get(norm, norm)
    if norm == "power_norm":
        with pytest.raises(NormError, match="norm 'power_norm' has a backward pass that is no gradient"):
            make_norm(spec, CHANNELS, dim, smooth=True)
        return
    if has_kinks(make_norm(spec, CHANNELS, dim)):
        with pytest.raises(NormError, match=f"norm '{norm}' has kinks, so its higher derivatives do not exist"):
            make_norm(spec, CHANNELS, dim, smooth=True)
        return
    plain, module = layer(norm, dim), layer(norm, dim, smooth=True)
    x = values(dim)
    torch.testing.assert_close(run(module, x), run(plain, x), rtol=0, atol=1e-12)
    for (name, buffer), (_, other) in zip(module.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=0, atol=1e-12, msg=name)
    torch.testing.assert_close(run(module.eval(), x), run(plain.eval(), x), rtol=0, atol=1e-12)
    if norm not in (*LINEAR, "batch_renorm"):
        assert third_derivative_is_right(module.train(), x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_float32_keeps_its_digits_beside_a_mean_of_33_sigma(norm, dim, layout, layer):
    if layout == "channels_last" and dim not in (2, 3):
        return
    shape = (4, 64, 4) if dim == "tokens" else (64, 4) if dim == 0 else (4, 4, *(8,) * dim)
    # 33 +- about 1, the sign alternating along every axis: so whatever is pooled has that mean and that deviation.
    parity = sum(index % 2 for index in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x = 33 + (1 - 2 * (parity % 2)) * (0.8 + 0.4 * noise)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last if dim == 2 else torch.channels_last_3d)
    silent = {"n_mu": 0.0, "n_sigma": 1.0, "r_mu": 0.0, "r_sigma": 0.0} if norm == "batch_noisy" else {}
    expected = run(layer(norm, dim, **silent), x.double())
    module = layer(norm, dim, **silent).float()
    error = ((run(module, x) - expected).abs() / expected.abs().clamp(min=1)).max().item()
    assert error <= 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near_float64_and_keeps_its_dtype(norm, dim, dtype, layer, values):
    module, x = layer(norm, dim).eval(), values(dim).to(dtype)
    reference = module(x.double())
    y = module.float()(x)
    assert y.dtype == dtype
    # One rounding to bfloat16 is 2^-9 = 0.002 of the value.
    tolerance = 4e-3 if dtype == torch.bfloat16 else 5e-6
    exact = ((y.double() - reference).abs() <= tolerance * reference.abs().clamp(min=1)).all()
    assert exact == (norm_entry(norm).exact_in_bf16 or dtype == torch.float32)


def test_autocast_trains_without_a_warning(norm, dim, layer, values):
    module, x = layer(norm, dim).float(), values(dim).bfloat16().requires_grad_()
    if norm == "batch_noisy":
        return  # its noise is drawn in the type of the input, so no other precision draws the same
    expected = run(layer(norm, dim), x.detach().double())
    with torch.autocast("cpu", torch.bfloat16):
        y = run(module, x)
        y.float().square().sum().backward()
    assert ((y.double() - expected).abs() <= 1e-2 * expected.abs().clamp(min=1)).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_constant_input_stays_finite(norm, dim, layer, values):
    module, x = layer(norm, dim), torch.full_like(values(dim), 3.0).requires_grad_()
    y = run(module, x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_one_value_a_channel_is_finite_or_refused(norm, dim, layer):
    module = layer(norm, dim)
    x = torch.ones((1, 1, 4) if dim == "tokens" else (1, 4) + (1,) * dim, dtype=torch.float64)
    refused = norm_entry(norm).mixes_samples and norm != "power_norm"
    if refused or norm in ("instance", "adaptive_instance", "conditional_instance"):
        with pytest.raises(ValueError, match=r"(?i)more than (1 value|one position)"):
            module(x)
    else:
        assert module(x).isfinite().all()


def test_an_empty_batch_is_passed_or_refused_and_leaves_the_buffers_finite(norm, dim, layer, values):
    module = layer(norm, dim)
    empty = values(dim)[:0]
    if norm_entry(norm).stateful and norm != "virtual_batch":
        with pytest.raises(ValueError, match="got"):
            module(empty)
    else:
        assert module(empty).shape == empty.shape
    assert all(buffer.isfinite().all() for buffer in module.buffers())
    assert module.eval()(empty).shape == empty.shape


def test_it_compiles_to_one_graph_of_equal_value(norm, layer, values):
    entry = norm_entry(norm)
    dim = 2 if 2 in entry.dims else entry.dims[0]
    module, x = layer(norm, dim).eval(), values(dim)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-12)
