"""Ghost batch norm, batch renorm, virtual batch norm and batch norm of each domain: what sets them apart."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ics_apps.norms import NormError, make_norm, norm_context

EPS = 1e-5


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.7


def build(name, channels=3, dim=2, **options):
    """A norm in float64 whose weight and bias are not those of the start."""
    norm = make_norm({"name": name, **options}, channels, dim).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, norm.weight.numel()))
        norm.bias.copy_(torch.linspace(-0.3, 0.4, norm.bias.numel()))
    return norm


def batch_norm(x, norm):
    return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, EPS)


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


class TestGhostBatch:
    def test_each_chunk_is_batch_norm_of_itself_and_a_last_smaller_one_too(self):
        x, norm = draw(8, 3, 4, 2), build("ghost_batch", batch_size=3)
        same(norm(x), torch.cat([batch_norm(chunk, norm) for chunk in x.split([3, 3, 2])]))

    def test_a_last_single_sample_joins_the_chunk_before(self):
        x, norm = draw(7, 3, 4, 2), build("ghost_batch", batch_size=3)
        same(norm(x), torch.cat([batch_norm(chunk, norm) for chunk in x.split([3, 4])]))

    def test_one_sample_in_all_is_its_own_chunk(self):
        x, norm = draw(1, 3, 4, 2), build("ghost_batch", batch_size=3)
        same(norm(x), batch_norm(x, norm))

    def test_the_chunks_move_the_running_statistics_as_batches_one_after_the_other(self):
        x, norm, batch = draw(7, 3, 4, 2), build("ghost_batch", batch_size=2), build("batch")
        norm(x)
        for chunk in x.split([2, 2, 3]):
            batch(chunk)
        same(norm.running_mean, batch.running_mean)
        same(norm.running_var, batch.running_var)
        same(norm.eval()(x), batch.eval()(x))
        assert norm.num_batches_tracked == 1

    def test_chunks_of_one_sample_are_refused(self):
        with pytest.raises(NormError, match="batch_size must be at least 2, got 1"):
            make_norm({"name": "ghost_batch", "batch_size": 1}, 3)


def renorm(step=40000, seen=1.0, **options):
    """Batch renorm at a step; running values at which channel 0 stays inside the limits, 1 and 2 do not."""
    norm = build("batch_renorm", **options)
    norm.num_batches_tracked.fill_(step)
    norm.running_mean.copy_(torch.tensor([0.5, 50.0, -50.0]))
    norm.running_std.copy_(torch.tensor([1.5, 0.1, 30.0]) * seen)
    return norm


def corrections(x, norm, r_max, d_max):
    """r and d of the paper, in numpy."""
    axes, array = (0, 2, 3), x.detach().numpy()
    running_mean, running_std = norm.running_mean.numpy(), norm.running_std.numpy()
    std = np.sqrt(array.var(axes) + EPS)
    r = np.clip(std / running_std, 1 / r_max, r_max)
    return r, np.clip((array.mean(axes) - running_mean) / running_std, -d_max, d_max)


def by_channel(vector):
    return torch.as_tensor(vector)[:, None, None]


def with_constants(x, norm, r, d):
    """The plain formula, r and d being numbers."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    z = (x - mean) / (var + EPS).sqrt() * by_channel(r) + by_channel(d)
    return z * by_channel(norm.weight) + by_channel(norm.bias)


class TestBatchRenorm:
    @pytest.mark.parametrize(
        ("step", "r_max", "d_max"),
        # Straight lines from 5000 on: r from 1 to 3 at 40000, d from 0 to 5 at 25000.
        [(0, 1, 0), (5000, 1, 0), (22500, 2, 4.375), (40000, 3, 5), (10**6, 3, 5)],
    )
    def test_the_limits_open_linearly_after_the_warm_up(self, step, r_max, d_max):
        r, d = renorm(step).limits()
        assert (r.item(), d.item()) == pytest.approx((r_max, d_max), abs=1e-12)

    def test_in_the_warm_up_it_is_batch_norm(self):
        x, norm = draw(4, 3, 4, 2), renorm(step=4999)
        same(norm(x), batch_norm(x, norm))

    @pytest.mark.parametrize(("step", "limits"), [(22500, (2, 4.375)), (40000, (3, 5))])
    def test_values_are_the_formula_with_r_and_d_cut_to_their_limits(self, step, limits):
        x, norm = draw(4, 3, 4, 2), renorm(step)
        r, d = corrections(x, norm, *limits)
        assert 1 / limits[0] < r[0] < limits[0]
        assert abs(d[0]) < limits[1]
        assert r[1:].tolist() == [limits[0], 1 / limits[0]]
        assert d[1] == -limits[1]
        same(norm(x), with_constants(x, norm, r, d).detach())

    def test_gradients_are_those_with_r_and_d_as_constants(self):
        x, norm, g = draw(4, 3, 4, 2).requires_grad_(), renorm(), draw(4, 3, 4, 2, seed=1)
        r, d = corrections(x, norm, 3, 5)
        leaves = (x, norm.weight, norm.bias)
        expected = torch.autograd.grad((with_constants(x, norm, r, d) * g).sum(), leaves, create_graph=True)
        found = torch.autograd.grad((norm(x) * g).sum(), leaves)
        for a, b in zip(found, expected, strict=True):
            same(a, b.detach())

    def test_so_they_are_by_design_not_the_slope_of_the_values(self):
        x, norm = draw(4, 3, 4, 2).requires_grad_(), renorm()
        assert not torch.autograd.gradcheck(lambda x: copy.deepcopy(norm)(x), x, raise_exception=False)
        assert torch.autograd.gradcheck(lambda x: renorm(step=0)(x), x)

    def test_with_wide_limits_training_gives_what_evaluation_gave_before_the_step(self):
        x, norm = draw(4, 3, 4, 2), renorm(r_max=1e6, d_max=1e6)
        before = norm.eval()(x)
        same(norm.train()(x), before, tolerance=1e-9)  # values reach 1000
        assert not torch.allclose(norm.eval()(x), before)

    def test_running_values_average_the_mean_and_the_biased_deviation_with_eps(self):
        x, norm = draw(4, 3, 4, 2), renorm(momentum=0.25)
        mean, std = norm.running_mean.clone(), norm.running_std.clone()
        norm(x)
        same(norm.running_mean, 0.75 * mean + 0.25 * x.mean((0, 2, 3)))
        same(norm.running_std, 0.75 * std + 0.25 * (x.var((0, 2, 3), correction=0) + EPS).sqrt())
        assert norm.num_batches_tracked == 40001

    def test_a_backward_pass_after_two_forward_passes_uses_the_statistics_of_each(self):
        x, norm = draw(4, 3, 4, 2).requires_grad_(), renorm()
        expected = torch.autograd.grad((copy.deepcopy(norm)(x) ** 2).sum(), x)[0]
        y = norm(x)
        norm(draw(4, 3, 4, 2, seed=2) * 100)
        same(torch.autograd.grad((y**2).sum(), x)[0], expected)

    def test_limits_that_end_before_the_warm_up_are_refused(self):
        with pytest.raises(NormError, match="r_steps must be at least 101, got 50"):
            make_norm({"name": "batch_renorm", "warmup_steps": 100, "r_steps": 50}, 3)


class TestVirtualBatch:
    def test_the_reference_is_plain_batch_norm_of_itself(self):
        x, norm = draw(6, 3, 4, 2), build("virtual_batch")
        same(norm(x, 4)[:4], batch_norm(x[:4], norm))

    def test_a_sample_is_normalised_by_the_moments_of_itself_and_the_reference(self):
        x, norm = draw(6, 3, 4, 2), build("virtual_batch")
        for sample in (4, 5):
            joint = torch.cat([x[:4], x[sample : sample + 1]])
            same(norm(x, 4)[sample], batch_norm(joint, norm)[-1])

    def test_a_sample_does_not_depend_on_the_others_outside_the_reference(self):
        x, norm = draw(6, 3, 4, 2), build("virtual_batch")
        other = x.clone()
        other[5] = 100
        assert torch.equal(norm(x, 4)[:5], norm(other, 4)[:5])

    @pytest.mark.parametrize("training", [True, False])
    def test_the_kept_reference_gives_what_the_forwarded_one_does(self, training):
        x, norm = draw(6, 3, 4, 2), build("virtual_batch")
        forwarded = norm(x, 4)
        same(norm.train(training)(x[4:]), forwarded[4:])

    def test_evaluation_with_a_reference_leaves_the_kept_one_alone(self):
        x, norm = draw(6, 3, 4, 2), build("virtual_batch")
        norm(x, 4)
        kept = norm.eval()(x)
        norm(x + 100, 2)
        assert torch.equal(norm(x), kept)

    def test_the_context_gives_what_the_argument_gives(self):
        x, norm = draw(6, 3, 4, 2), build("virtual_batch")
        with norm_context(reference=4):
            assert torch.equal(norm(x), norm(x, 4))

    @pytest.mark.parametrize("reference", [0, 7])
    def test_a_reference_that_is_no_part_of_the_batch_is_refused(self, reference):
        norm = build("virtual_batch")
        with pytest.raises(NormError, match=f"the first 1 to 6 samples of this batch, got {reference}"):
            norm(draw(6, 3, 4, 2), reference)

    def test_a_batch_before_the_first_reference_is_refused(self):
        with pytest.raises(NormError, match=r"needs a condition and got none: .*norm\(x, reference\)"):
            build("virtual_batch")(draw(6, 3, 4, 2))


DOMAINS = torch.tensor([2, 0, 2, 0, 0, 2])


class TestBatchPerDomain:
    def per_domain(self, norm, name):
        return getattr(norm, name).view(3, 3)

    def test_each_domain_is_batch_norm_of_its_own_samples(self):
        x, norm = draw(6, 3, 4, 2), build("batch_per_domain", num_domains=3)
        y = norm(x, DOMAINS)
        for domain in (0, 2):
            weight, bias = (self.per_domain(norm, name)[domain] for name in ("weight", "bias"))
            own = x[domain == DOMAINS]
            same(y[domain == DOMAINS], F.batch_norm(own, None, None, weight, bias, True, 0.0, EPS))

    def test_running_statistics_move_as_batch_norms_of_the_present_domains_only(self):
        x, norm, batch = draw(6, 3, 4, 2), build("batch_per_domain", num_domains=3), build("batch")
        norm(x, DOMAINS)
        batch(x[DOMAINS == 2])
        same(norm.running_mean[2], batch.running_mean)
        same(norm.running_var[2], batch.running_var)
        assert torch.equal(norm.running_mean[1], torch.zeros(3, dtype=torch.float64))
        assert torch.equal(norm.running_var[1], torch.ones(3, dtype=torch.float64))

    def test_evaluation_takes_the_statistics_of_each_samples_domain(self):
        x, norm = draw(6, 3, 4, 2), build("batch_per_domain", num_domains=3)
        norm(x, DOMAINS)
        norm.eval()
        for domain in range(3):
            state = (self.per_domain(norm, name)[domain] for name in ("running_mean", "running_var", "weight", "bias"))
            same(norm(x, torch.full((6,), domain)), F.batch_norm(x, *state, False, 0.0, EPS))

    def test_only_the_parameters_of_present_domains_get_a_gradient(self):
        norm = build("batch_per_domain", num_domains=3)
        (norm(draw(6, 3, 4, 2), DOMAINS) * draw(6, 3, 4, 2, seed=1)).sum().backward()
        moved = norm.weight.grad.view(3, 3).abs().sum(1) > 0
        assert moved.tolist() == [True, False, True]

    def test_the_context_gives_what_the_argument_gives(self):
        x, norm = draw(6, 3, 4, 2), build("batch_per_domain", num_domains=3)
        with norm_context(domain=DOMAINS):
            assert torch.equal(norm(x), norm(x, DOMAINS))

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (DOMAINS.float(), r"one integer for each of the 6 samples, got torch.float32 of shape \(6,\)"),
            (DOMAINS[:5], r"one integer for each of the 6 samples, got torch.int64 of shape \(5,\)"),
            (DOMAINS[:, None], r"got torch.int64 of shape \(6, 1\)"),
            ("scanner", "got 'scanner'"),
            (DOMAINS + 1, "domain 3 is out of range: num_domains is 3, so 0 to 2"),
            (DOMAINS - 1, "domain -1 is out of range: num_domains is 3, so 0 to 2"),
        ],
    )
    def test_ids_of_the_wrong_kind_are_refused(self, ids, message):
        norm = build("batch_per_domain", num_domains=3)
        with pytest.raises(NormError, match=f"domain .*{message}" if "range" not in message else message):
            norm(draw(6, 3, 4, 2), ids)

    def test_a_domain_with_one_value_a_channel_is_refused_in_training_only(self):
        x, ids, norm = draw(4, 3), torch.tensor([0, 0, 0, 1]), build("batch_per_domain", dim=0)
        with pytest.raises(ValueError, match=r"more than 1 value per channel and domain .* domains \[3, 1\]"):
            norm(x, ids)
        assert norm.eval()(x, ids).isfinite().all()
