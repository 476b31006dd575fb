"""Batch renorm of two processes (gloo, on the CPU) against one that holds the joined, uneven batch.

The file is also what each of the processes runs: `python test_renorm_distributed.py RANK RENDEZVOUS OUT`.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from ics_apps.norms import make_norm
from tests.norms.two_ranks import results_of_two_ranks

SPLITS = {"uneven": (3, 2), "single": (4, 1), "empty": (5, 0)}
SHAPES = {0: (5, 4), 2: (5, 4, 3, 2), "tokens": (5, 6, 4)}


def draw(dim):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SHAPES[dim], generator=generator, dtype=torch.float64) * 2 + 0.7


def share(x, split, rank):
    """The part of the joined batch that a rank holds; all of it where there is no rank."""
    return (x if rank is None else x.split(SPLITS[split])[rank]).clone()


def build(dim, step):
    norm = make_norm({"name": "batch_renorm", "sync": True, "momentum": 0.2}, 4, dim).double()
    norm.num_batches_tracked.fill_(step)
    # Channels 1 and 2 are beyond the limits of r, or of d.
    norm.running_mean.copy_(torch.tensor([0.5, 50.0, -50.0, 1.0]))
    norm.running_std.copy_(torch.tensor([1.5, 0.1, 30.0, 2.5]))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return norm


def train(rank, split="uneven", dim=2, step=40000, single=False, recompute=False):
    """Values, gradients (of a loss that is the sum over ranks) and state after two training batches."""
    x, direction, norm = share(draw(dim), split, rank), share(draw(dim).cos(), split, rank), build(dim, step)
    if single:
        x, direction, norm = x.float(), direction.float(), norm.float()
    x.requires_grad_()
    norm(x)
    y = checkpoint(norm, x, use_reentrant=False) if recompute else norm(x)
    (y * direction).sum().backward()
    state = {name: value.detach().clone() for name, value in norm.named_buffers()}
    return {"y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad, **state}


CASES = {
    "uneven": train,
    "warm-up": lambda rank: train(rank, step=0),
    "tokens": lambda rank: train(rank, dim="tokens"),
    # One rank has one value a channel, which alone would be refused.
    "features": lambda rank: train(rank, split="single", dim=0),
    "checkpointed": lambda rank: train(rank, recompute=True),
    "float32": lambda rank: train(rank, single=True),
    "empty": lambda rank: train(rank, split="empty"),
    "empty features": lambda rank: train(rank, split="empty", dim=0),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of all cases on rank 0 and rank 1."""
    return results_of_two_ranks(__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_equal_one_process_on_the_joined_batch(ranks, case):
    tolerance = 1e-6 if case == "float32" else 1e-12
    found, expected = [rank[case] for rank in ranks], CASES[case](None)
    for key in ("y", "dx"):
        torch.testing.assert_close(
            torch.cat([part[key] for part in found]), expected[key], rtol=tolerance, atol=tolerance
        )
    for key in ("dweight", "dbias"):
        torch.testing.assert_close(sum(part[key] for part in found), expected[key], rtol=tolerance, atol=tolerance)
    for key in ("running_mean", "running_std"):
        assert torch.equal(found[0][key], found[1][key])
        torch.testing.assert_close(found[0][key], expected[key], rtol=tolerance, atol=tolerance)
    assert found[0]["num_batches_tracked"] == found[1]["num_batches_tracked"] == expected["num_batches_tracked"]


def test_ranks_that_do_not_sync_would_differ(ranks):
    alone = make_norm({"name": "batch_renorm"}, 4).double()(draw(2)[:3])
    assert not torch.allclose(ranks[0]["warm-up"]["y"], alone, atol=1e-3)


if __name__ == "__main__":
    own_rank = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=own_rank, world_size=2)
    torch.save({name: case(own_rank) for name, case in CASES.items()}, f"{sys.argv[3]}/{own_rank}.pt")
    dist.destroy_process_group()
