"""Records that two processes hold come to both."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from ics_apps.probes.activations.records import Ranks, Record
from tests.norms.two_ranks import results_of_two_ranks


def test_every_rank_gets_all_records_even_if_it_has_none_or_too_many_for_the_first_message(tmp_path: Path) -> None:
    first, second = results_of_two_ranks(__file__, tmp_path)
    assert first["indices"] == second["indices"] == [[0, 1], [0], [0, 1]]
    assert first["sums"] == second["sums"]
    # The second round is sent twice, since it is larger than what the ranks had agreed on; the third fits.
    assert first["collectives"] == second["collectives"] == [1, 2, 1]


def test_a_single_process_keeps_its_records() -> None:
    records = [_record(0, 3)]
    assert Ranks(torch.device("cpu")).gather(records) is records


def _record(index: int, size: int) -> Record:
    values = np.arange(size, dtype=np.float32)
    return Record(index, "", 0, "float32", size, 1, values, None, np.empty(0, np.float32), {})


if __name__ == "__main__":
    rank, rendezvous, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    monkey, calls, gather = pytest.MonkeyPatch(), [0], distributed.all_gather
    monkey.setattr(distributed, "all_gather", lambda *a, **k: (calls.__setitem__(0, calls[0] + 1), gather(*a, **k))[1])
    ranks, found, counts = Ranks(torch.device("cpu")), [], []
    for records in ([_record(rank, 5)], [_record(0, 100_000)] if rank == 0 else [], [_record(rank, 100_000)]):
        before = calls[0]
        found.append(ranks.gather(records))
        counts.append(calls[0] - before)
    torch.save(
        {
            "indices": [[record.index for record in records] for records in found],
            "sums": [[float(record.values.sum()) for record in records] for records in found],
            "collectives": counts,
        },
        folder / f"{rank}.pt",
    )
    distributed.barrier()  # a rank that leaves early can break the other's last exchange
    distributed.destroy_process_group()
