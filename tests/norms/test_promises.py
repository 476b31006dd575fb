"""What every entry promises, measured in every dimension it is defined for."""

from __future__ import annotations

import io

import pytest
import torch
from torch.func import functional_call

from ics_apps.norms import list_norms, norm_entry
from ics_apps.norms.axes import channel_axis, space_axes


def run(module, x):
    """One forward pass with the same noise each time."""
    torch.manual_seed(0)
    return module(x)


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
    start = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.eval()(x)
    assert all(torch.equal(buffer, start[name]) for name, buffer in module.named_buffers())
    module.train()(x)
    moved = any(not torch.equal(buffer, start[name]) for name, buffer in module.named_buffers())
    assert moved == norm_entry(norm).stateful


def test_scale_invariance_is_as_declared(norm, dim, layer, values):
    module, x = layer(norm, dim), values(dim) * 30
    change = (run(module, 2 * x) - run(module, x)).abs().max().item()
    # The rest is eps: 1e-5 against variances of at least 30, a shift of less than 1e-6.
    assert (change < 1e-6) == norm_entry(norm).scale_invariant


@pytest.mark.parametrize("absorber", [name for name in list_norms() if norm_entry(name).absorbs_bias])
def test_a_norm_that_absorbs_a_bias_has_its_own_shift(absorber, layer, values):
    dim = norm_entry(absorber).dims[-1]
    module, x = layer(absorber, dim).eval(), values(dim)
    before = module(x)
    shifts = [parameter for name, parameter in module.named_parameters() if name.endswith("bias")]
    with torch.no_grad():
        shifts[0] += 1
    torch.testing.assert_close(module(x), before + 1, rtol=0, atol=1e-12)


def test_gradients_are_right(norm, dim, layer, values):
    module, x = layer(norm, dim), values(dim).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True) if list(module.parameters()) else ((), ())

    def call(x, *given):
        torch.manual_seed(0)
        return functional_call(module, dict(zip(names, given, strict=True)), (x,))

    # A random direction, since the plain sum of a normalised output hardly depends on its input.
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *parameters), fast_mode=True)


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


@pytest.mark.parametrize("image_norm", [name for name in list_norms() if 2 in norm_entry(name).dims])
@pytest.mark.parametrize(("axes", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_is_kept_and_gives_the_same_values(image_norm, axes, memory_format, layer, values):
    module, x = layer(image_norm, axes), values(axes)
    assert run(module, x.to(memory_format=memory_format)).is_contiguous(memory_format=memory_format)
    if image_norm == "batch_noisy":
        # Its noise is drawn in memory order, so only its evaluation can be compared.
        module.eval()
    y = run(module, x.to(memory_format=memory_format))
    torch.testing.assert_close(y, run(module, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near_float64_and_keeps_its_dtype(norm, dim, dtype, layer, values):
    module, x = layer(norm, dim).eval(), values(dim).to(dtype)
    reference = module(x.double())
    y = module.float()(x)
    assert y.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-6
    torch.testing.assert_close(y.double(), reference, rtol=tolerance, atol=tolerance)


def test_autocast_trains_without_a_warning(norm, dim, layer, values):
    module, x = layer(norm, dim).float(), values(dim).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        module(x).float().square().sum().backward()
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
    if norm_entry(norm).mixes_samples or norm == "instance":
        with pytest.raises(ValueError, match=r"(?i)more than (1 value|one position)"):
            module(x)
    else:
        assert module(x).isfinite().all()


def test_it_compiles_to_one_graph_of_equal_value(norm, layer, values):
    entry = norm_entry(norm)
    dim = 2 if 2 in entry.dims else entry.dims[0]
    module, x = layer(norm, dim).eval(), values(dim)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-12)
