"""Two processes (gloo, on the CPU) against one that holds the joined, uneven batch.

The file is also what each of the processes runs: `python test_distributed.py RANK RENDEZVOUS OUT`.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from ics_apps.norms import make_norm
from ics_apps.norms.distributed import all_gather_stack, all_reduce_sum, in_group, merged_moments
from ics_apps.norms.statistics import recompute_statistics
from tests.norms.two_ranks import results_of_two_ranks

SPLITS = {"uneven": (3, 2), "empty": (5, 0)}
SHAPES = {0: (5, 4), 2: (5, 4, 3, 2), "tokens": (5, 6, 4)}


def draw(dim, offset=0.7):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SHAPES[dim], generator=generator, dtype=torch.float64) * 2 + offset


def share(x, split, rank):
    """The part of the joined batch that a rank holds; all of it where there is no rank."""
    return x if rank is None else x.split(SPLITS[split])[rank]


def build(dim, **options):
    norm = make_norm({"name": "sync_batch", **options}, 4, dim).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return norm


def train(rank, split="uneven", dim=2, offset=0.7, single=False, recompute=False, **options):
    """Values, gradients (of a loss that is the sum over ranks) and state after two training batches."""
    x = share(draw(dim, offset), split, rank).clone()
    direction = share(draw(dim).cos(), split, rank)
    norm = build(dim, **options)
    if single:
        x, direction, norm = x.float(), direction.float(), norm.float()
    x.requires_grad_()
    norm(x)
    y = checkpoint(norm, x, use_reentrant=False) if recompute else norm(x)
    (y * direction).sum().backward()
    state = {name: value.detach().clone() for name, value in norm.named_buffers()}
    return {"y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad, **state}


def penalise(rank):
    """The second derivative: the gradient of the square of an input gradient, as R1 penalties take it."""
    x, norm = share(draw(2), "uneven", rank).clone().requires_grad_(), build(2)
    (slope,) = torch.autograd.grad((norm(x).sin() * share(draw(2), "uneven", rank)).sum(), x, create_graph=True)
    slope.square().sum().backward()
    return {"dx": x.grad, "dweight": norm.weight.grad}


def merge(rank):
    x = share(draw(0, offset=1e6), "uneven", rank)
    var, mean = torch.var_mean(x, 0, correction=0)
    far = dict(zip(("mean", "var", "count"), merged_moments(mean, var, len(x)), strict=True))
    nothing = torch.full((4,), torch.nan, dtype=torch.float64)
    moments = (mean, var) if rank in (0, None) else (nothing, nothing)
    alone = dict(zip(("mean0", "var0", "count0"), merged_moments(*moments, 3 * (rank == 0)), strict=True))
    return {**far, **alone, "sum": all_reduce_sum(torch.ones(2)), "rows": all_gather_stack(torch.tensor(rank or 0))}


def small(rank):
    """Fewer values than `min_count` on all ranks together, though one rank alone could not know."""
    x = share(draw(0), "uneven", rank)
    try:
        build(0, min_count=6)(x)
        message = ""
    except ValueError as error:
        message = str(error)
    enough = build(0, min_count=5)(x)
    norm = build(0, min_count=6, small_batch="running")
    return {"message": message, "enough": enough.detach(), "running": norm(x).detach(), "mean": norm.running_mean}


def reestimate(rank):
    """Uneven batches: two on the first rank, one on the other; a net whose second norm sees what the first makes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), make_norm("sync_batch", 3, 0), nn.Tanh(), make_norm("batch", 3, 0)).double()
    batches = [draw(0), draw(0)[:2] + 100, draw(0)[1:4] * 3]
    own = batches if rank is None else [batches[:2], batches[2:]][rank]
    report = recompute_statistics(net, own)
    state = {name: value.clone() for name, value in net.named_buffers()}
    idle = recompute_statistics(net, [] if rank == 1 else batches[:2])
    alone = {f"alone.{name}": value for name, value in net.named_buffers()}
    return {"values": report.values, "batches": report.batches, "idle": idle.batches, **state, **alone}


CASES = {
    "merge": merge,
    "uneven": train,
    "features": lambda rank: train(rank, dim=0),
    "tokens": lambda rank: train(rank, dim="tokens"),
    "empty": lambda rank: train(rank, split="empty"),
    "average": lambda rank: train(rank, momentum=None),
    "single": lambda rank: train(rank, single=True),
    "checkpointed": lambda rank: train(rank, recompute=True),
    "second": penalise,
    "small": small,
    "reestimate": reestimate,
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of all cases on rank 0 and rank 1."""
    return results_of_two_ranks(__file__, tmp_path_factory.mktemp("ranks"))


def test_moments_merge_without_cancellation_and_without_looking_at_an_empty_rank(ranks):
    x = draw(0, offset=1e6)
    for rank in ranks:
        found = rank["merge"]
        # Means near 1e6 are known to 1e-10 in float64; a difference of squares would leave 1e-4 of the variance.
        torch.testing.assert_close(found["mean"], x.mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(found["var"], x.var(0, correction=0), rtol=1e-9, atol=0)
        assert found["count"].tolist() == [5] * 4
        torch.testing.assert_close(found["mean0"], x[:3].mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(found["var0"], x[:3].var(0, correction=0), rtol=1e-9, atol=0)
        assert found["count0"].tolist() == [3] * 4


def test_collectives_sum_and_stack_in_the_order_of_ranks(ranks):
    for rank in ranks:
        assert rank["merge"]["sum"].tolist() == [2, 2]
        assert rank["merge"]["rows"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("uneven", 1e-12), ("features", 1e-12), ("tokens", 1e-12), ("empty", 1e-12), ("average", 1e-12),
     ("checkpointed", 1e-12), ("single", 1e-6)],
)  # fmt: skip
def test_sync_batch_equals_one_process_on_the_joined_batch(ranks, case, tolerance):
    found, expected = [rank[case] for rank in ranks], CASES[case](None)
    for key in ("y", "dx"):
        torch.testing.assert_close(torch.cat([part[key] for part in found]), expected[key], rtol=0, atol=tolerance)
    for key in ("dweight", "dbias"):
        torch.testing.assert_close(sum(part[key] for part in found), expected[key], rtol=tolerance, atol=tolerance)
    for key in ("running_mean", "running_var"):
        assert torch.equal(found[0][key], found[1][key])
        torch.testing.assert_close(found[0][key], expected[key], rtol=tolerance, atol=tolerance)
    assert found[0]["num_batches_tracked"] == found[1]["num_batches_tracked"] == 2


def test_sync_batch_equals_one_process_in_the_second_derivative(ranks):
    found, expected = [rank["second"] for rank in ranks], penalise(None)
    torch.testing.assert_close(torch.cat([part["dx"] for part in found]), expected["dx"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(p["dweight"] for p in found), expected["dweight"], rtol=1e-12, atol=1e-12)


def test_a_batch_is_small_by_the_values_of_all_ranks(ranks):
    expected = small(None)
    for rank in ranks:
        assert (
            "needs more than 5 values per channel in training, got 5 on all ranks together" in rank["small"]["message"]
        )
    for key in ("enough", "running"):
        together = torch.cat([rank["small"][key] for rank in ranks])
        torch.testing.assert_close(together, expected[key], rtol=0, atol=1e-12)
    assert ranks[0]["small"]["mean"].tolist() == [0] * 4


def test_statistics_are_re_estimated_over_uneven_batches_and_ranks(ranks):
    expected = reestimate(None)
    for rank in ranks:
        found = rank["reestimate"]
        assert found["values"] == expected["values"] == {"1": 10, "3": 10}
        assert (found["batches"], found["idle"]) == (3, 2)
        for name in (name for name in expected if "running" in name):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_re_estimated_statistics_are_the_same_bits_on_all_ranks(ranks):
    first, second = (rank["reestimate"] for rank in ranks)
    for name in (name for name in first if "running" in name):
        assert torch.equal(first[name], second[name])


def test_one_process_is_no_group():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not in_group()
    assert all_reduce_sum(x) is x
    assert all_gather_stack(x).shape == (1, 2)


if __name__ == "__main__":
    own_rank = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=own_rank, world_size=2)
    torch.save({name: case(own_rank) for name, case in CASES.items()}, f"{sys.argv[3]}/{own_rank}.pt")
    dist.destroy_process_group()
