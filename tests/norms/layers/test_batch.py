"""Batch norm by dimension, its two additions to torch's, its frozen form and its noise."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from ics_apps.norms import NormError, make_norm

HOW_TO = Path(__file__).parents[3] / "docs" / "how-to" / "batch_norm.md"


def pair(dim=2, **options):
    """Ours and torch's, with the same parameters; ours is all that the options change."""
    ours = make_norm({"name": "batch", **options}, 4, dim)
    torchs = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dim](4)
    with torch.no_grad():
        for norm in (ours, torchs):
            norm.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return ours, torchs


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("dim", "kind"), [(0, nn.BatchNorm1d), (1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)]
)
@pytest.mark.parametrize("name", ["batch", "sync_batch"])
def test_it_is_a_torch_batch_norm_with_torchs_state(name, dim, kind):
    ours, torchs = make_norm(name, 4, dim), kind(4)
    assert isinstance(ours, kind)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    torchs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(("dim", "shape"), [(0, (6, 4)), (1, (6, 4, 5)), (2, (6, 4, 3, 5)), (3, (6, 4, 2, 3, 2))])
def test_values_gradients_and_state_are_torchs_bit_for_bit(dim, shape):
    ours, torchs = pair(dim)
    x, x_torchs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    y, y_torchs = ours(x), torchs(x_torchs)
    y.sin().sum().backward()
    y_torchs.sin().sum().backward()
    assert torch.equal(y, y_torchs)
    assert torch.equal(x.grad, x_torchs.grad)
    assert torch.equal(ours.weight.grad, torchs.weight.grad)
    assert same_bits(ours, torchs)
    assert torch.equal(ours.eval()(x), torchs.eval()(x))


def train_twice(net, x, reentrant):
    """Two training steps, without activation checkpointing where `reentrant` is None."""
    for _ in range(2):
        y = net(x) if reentrant is None else checkpoint(net, x, use_reentrant=reentrant)
        y.sin().sum().backward()
    return [x.grad, *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "spec",
    ["batch", "sync_batch", "batch_noisy", {"name": "batch", "momentum": None},
     {"name": "batch", "track_running_stats": False}, {"name": "batch", "small_batch": "running", "min_count": 1000}],
)  # fmt: skip
def test_activation_checkpointing_changes_no_bit_of_the_state_or_the_gradients(spec, reentrant):
    def run(reentrant):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), make_norm(spec, 4), nn.ReLU())
        return net, train_twice(net, torch.randn(5, 2, 6, 6, requires_grad=True), reentrant)

    (plain, gradients), (checkpointed, theirs) = run(None), run(reentrant)
    assert same_bits(plain, checkpointed)
    assert all(torch.equal(a, b) for a, b in zip(gradients, theirs, strict=True))


def test_torchs_own_counts_a_checkpointed_batch_twice():
    """What the test before this one would find in torch; when it no longer holds, the remedy can go."""
    norm = nn.BatchNorm2d(2)
    train_twice(norm, torch.randn(5, 2, 6, 6, requires_grad=True), False)
    assert norm.num_batches_tracked == 4


@pytest.mark.parametrize("dim", [0, 2, "tokens"])
@pytest.mark.parametrize("name", ["batch", "sync_batch"])
def test_a_small_training_batch_is_refused_with_the_choices(name, dim):
    shape = (1, 1, 4) if dim == "tokens" else (1, 4) + (1,) * dim
    message = (
        r"needs more than 1 value per channel in training, got 1 from an input of size .*; give the data loader "
        r"drop_last=True, take a norm within each sample such as 'group', or .*'small_batch': 'running'"
    )
    norm = make_norm(name, 4, dim)
    with pytest.raises(ValueError, match=message):
        norm(torch.randn(shape))
    assert norm.num_batches_tracked == 0
    assert norm.eval()(torch.randn(shape)).isfinite().all()


def test_the_bound_of_a_small_batch_counts_samples_times_positions():
    norm = make_norm({"name": "batch", "min_count": 8}, 4)
    assert norm(torch.randn(2, 4, 2, 2)).isfinite().all()
    with pytest.raises(ValueError, match="needs more than 7 values per channel in training, got 6 from"):
        norm(torch.randn(2, 4, 3, 1))


def test_an_empty_batch_is_small_too():
    with pytest.raises(ValueError, match="got 0 from"):
        make_norm("batch", 4)(torch.randn(0, 4, 3, 3))
    assert make_norm({"name": "batch", "small_batch": "running"}, 4)(torch.randn(0, 4, 3, 3)).shape == (0, 4, 3, 3)


def test_a_small_batch_can_take_the_running_statistics_as_constants():
    norm, _ = pair(dim=0, small_batch="running", min_count=3)
    norm(torch.randn(16, 4) * 3 + 1)
    before = copy.deepcopy(norm)
    x = torch.randn(2, 4, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert same_bits(norm, before)
    assert torch.equal(y, before.eval()(x))
    # The slope of a line per channel: no gradient flows through statistics.
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(x.grad, slope.expand(2, 4), rtol=1e-6, atol=0)


@settings(deadline=None)  # the first call loads what torch loads late
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=2).filter(lambda pair: abs(pair[0] - pair[1]) > 0.1))
def test_two_values_become_plus_and_minus_one_whatever_they_are(values):
    low, high = make_norm({"name": "batch", "eps": 1e-12}, 1, 0)(torch.tensor(sorted(values)).unsqueeze(1))
    assert (low.item(), high.item()) == (pytest.approx(-1, abs=1e-3), pytest.approx(1, abs=1e-3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_batch": "runing"}, "small_batch is 'refuse' or 'running', got 'runing'; did you mean 'running'?"),
        ({"min_count": 1}, "min_count must be at least 2, as one value has no variance; got 1"),
        (
            {"small_batch": "running", "track_running_stats": False},
            "small_batch='running' needs the running statistics that track_running_stats=False leaves out",
        ),
    ],
)
@pytest.mark.parametrize("name", ["batch", "sync_batch"])
def test_wrong_options_for_small_batches_are_refused(name, options, message):
    with pytest.raises(NormError, match=re.escape(message)):
        make_norm({"name": name, **options}, 4)


@pytest.mark.parametrize("options", [{}, {"small_batch": "running", "min_count": 1000}])
@pytest.mark.parametrize("name", ["batch", "sync_batch"])
def test_training_compiles_to_one_graph_that_moves_the_statistics_once(name, options):
    eager, compiled = (make_norm({"name": name, **options}, 4) for _ in range(2))
    x = torch.randn(3, 4, 5, 5)
    y = torch.compile(compiled, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, eager(x), rtol=0, atol=1e-6)
    assert same_bits(eager, compiled)


def test_training_exports_to_torchs_operation():
    net = nn.Sequential(make_norm("sync_batch", 4))
    x = torch.randn(3, 4, 5, 5)
    graph = torch.export.export(net, (x,)).graph
    assert torch.ops.aten.batch_norm.default in [node.target for node in graph.nodes]


def test_it_prints_as_torchs_and_what_differs_from_it():
    assert repr(make_norm("batch", 4)) == repr(nn.BatchNorm2d(4))
    shown = repr(make_norm({"name": "sync_batch", "small_batch": "running", "min_count": 8}, 4, "tokens"))
    assert shown.startswith("TokenBatchNorm(4, eps=1e-05, ")
    assert shown.endswith("small_batch='running', min_count=8, sync=True)")


def test_batch_norm_of_tokens_refuses_an_image():
    with pytest.raises(ValueError, match=r"expected tokens \(B, L, C\), got 4 axes"):
        make_norm("batch", 4, "tokens")(torch.zeros(2, 3, 4, 4))


def test_batch_norm_of_tokens_equals_torchs_on_all_tokens():
    x = torch.randn(3, 5, 4)
    ours, torchs = make_norm("batch", 4, "tokens"), nn.BatchNorm1d(4)
    assert torch.equal(ours(x), torchs(x.reshape(15, 4)).reshape(3, 5, 4))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_frozen_norm_takes_over_a_trained_batch_norm():
    trained, frozen = make_norm("batch", 4), make_norm("batch_frozen", 4)
    trained(torch.randn(8, 4, 5, 5) * 3 + 1)
    with torch.no_grad():
        trained.weight.mul_(2)
        trained.bias.add_(1)
    state = trained.state_dict()
    frozen.load_state_dict(state)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(frozen.train()(x), trained.eval()(x))
    assert list(frozen.parameters()) == []
    assert "num_batches_tracked" in state


def test_a_net_of_frozen_norms_takes_over_a_net_of_trained_ones():
    trained = nn.Sequential(nn.Conv2d(1, 4, 3), make_norm("batch", 4))
    frozen = nn.Sequential(nn.Conv2d(1, 4, 3), make_norm("batch_frozen", 4))
    trained(torch.randn(8, 1, 5, 5))
    frozen.load_state_dict(trained.state_dict())
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(frozen(x), trained.eval()(x))


def test_noise_has_the_ranges_of_the_paper():
    norm = make_norm({"name": "batch_noisy", "n_mu": 0.5, "n_sigma": 1.25, "r_mu": 0.1, "r_sigma": 0.1}, 200)
    torch.manual_seed(0)
    scale, shift = norm.draw(torch.zeros(50, 200, 4, 4))
    centre, spread = shift.mean((0, 2, 3)), scale.mean((0, 2, 3))
    # The mean of 800 draws of U(-0.1, 0.1) has the standard deviation 0.1 / sqrt(3 * 800) = 0.002.
    assert centre.abs().max() <= 0.5 + 0.01
    assert centre.std().item() == pytest.approx(1 / 12**0.5, rel=0.1)
    assert (shift - centre.view(200, 1, 1)).abs().max() <= 0.1 + 0.01
    assert 1 - 0.02 <= spread.min() <= spread.max() <= 1.25 + 0.02
    assert (scale - spread.view(200, 1, 1)).std().item() == pytest.approx(0.1, rel=0.02)


def test_noise_jumps_between_steps_and_is_off_in_evaluation():
    norm = make_norm("batch_noisy", 4)
    x = torch.randn(8, 4, 5, 5)
    assert not torch.equal(norm(x), norm(x))
    assert torch.equal(norm.eval()(x), norm(x))


def test_no_noise_is_plain_batch_norm():
    silent = make_norm({"name": "batch_noisy", "n_mu": 0.0, "n_sigma": 1.0, "r_mu": 0.0, "r_sigma": 0.0}, 4)
    x = torch.randn(8, 4, 5, 5)
    torch.testing.assert_close(silent(x), make_norm("batch", 4)(x), rtol=0, atol=1e-6)


def test_the_how_to_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert len(blocks) > 5
    exec(compile("\n".join(blocks), HOW_TO.name, "exec"), {})  # noqa: S102 - our own page
