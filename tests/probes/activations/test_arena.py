"""Memory in which samples wait."""

from __future__ import annotations

import torch

from ics_apps.probes.activations.arena import CHUNK, Arena, Slot


def write(arena: Arena, sample: torch.Tensor) -> Slot:
    slot, memory = arena.reserve(len(sample))
    memory.copy_(sample)
    return slot


def test_samples_come_back_as_float32_in_their_slots() -> None:
    arena = Arena(torch.device("cpu"))
    samples = [torch.tensor([1.5, -2.0], dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)]
    slots = [write(arena, sample) for sample in samples]
    (chunk,), _ = arena.fetch([])
    assert [chunk[slot.start : slot.start + slot.count].tolist() for slot in slots] == [[1.5, -2.0]] * 3


def test_more_samples_than_a_chunk_holds_take_another_chunk_which_is_used_again() -> None:
    arena = Arena(torch.device("cpu"))
    for _ in range(2):
        slots = [write(arena, torch.full((CHUNK // 2 + 1,), float(value))) for value in range(3)]
        assert [slot.chunk for slot in slots] == [0, 1, 2]
        assert [chunk[0] for chunk in arena.fetch([])[0]] == [0.0, 1.0, 2.0]
        arena.clear()
    small = write(arena, torch.zeros(4))
    assert (small.chunk, small.start) == (0, 0)
    assert len(arena.fetch([])[0]) == 3


def test_small_tensors_come_with_the_samples() -> None:
    arena = Arena(torch.device("cpu"))
    write(arena, torch.zeros(3))
    _, (first, second) = arena.fetch([torch.tensor([[1, 2]]), torch.tensor(3.0)])
    assert (first.tolist(), second.tolist()) == ([1.0, 2.0], [3.0])


def test_nothing_written_is_nothing_fetched() -> None:
    assert Arena(torch.device("cpu")).fetch([]) == ((), ())


def test_a_sample_larger_than_a_chunk_has_a_chunk_of_its_own() -> None:
    arena = Arena(torch.device("cpu"))
    for _ in range(2):
        slots = [write(arena, torch.full((size,), float(size))) for size in (4, 2 * CHUNK, 5)]
        chunks = arena.fetch([])[0]
        assert [chunks[slot.chunk][slot.start] for slot in slots] == [4.0, 2.0 * CHUNK, 5.0]
        assert [slot.chunk for slot in slots] == [0, 1, 0]
        arena.clear()
