"""A model that FSDP2 shards over two processes is read like the whole one; its sharded weights are not told."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from ics_apps.probes import Recorder, Table, select_layers
from tests.norms.two_ranks import results_of_two_ranks

FIGURES = ("count", "mean", "std", "min", "max", "skewness", "kurtosis", "q15", "q50", "q85", "zero_fraction")
BATCH = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))


def watch(model: nn.Module, x: Tensor) -> Table:
    with Recorder(select_layers(model).chosen) as recorder:
        recorder.start(0)
        model(x).square().mean().backward()
        return recorder.close()


def test_a_sharded_model_is_read_like_the_whole_one(tmp_path: Path) -> None:
    expected = watch(net(), BATCH)
    for found in results_of_two_ranks(__file__, tmp_path):
        assert found["layer"] == expected["layer"].tolist()
        assert found["type"] == expected["type"].tolist()
        for name in FIGURES:
            assert found[name] == pytest.approx(expected[name].tolist(), rel=1e-6, abs=1e-6), name
        assert all(rms > 0 for rms in found["grad_rms"])
        assert all(math.isnan(norm) for norm in found["weight_norm"])


if __name__ == "__main__":
    rank, rendezvous, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model: Any = net()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model[0], model[3], model):
        fully_shard(part, mesh=mesh)
    table = watch(model, BATCH[:5] if rank == 0 else BATCH[5:])
    columns = ("layer", "type", "grad_rms", "weight_norm", *FIGURES)
    torch.save({name: table[name].tolist() for name in columns}, folder / f"{rank}.pt")
    distributed.barrier()  # a rank that leaves early can break the other's last exchange
    distributed.destroy_process_group()
