"""How much memory a monitor holds: every array and tensor that can be reached from it, without the model's."""

from __future__ import annotations

import gc
import sys
import tracemalloc
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

# What is not the monitor's own: the model, the trainer, and code.
_OTHERS = (nn.Module, Trainer, torch.optim.Optimizer, type, types.ModuleType, types.FunctionType, types.CodeType)


def held_bytes(holder: object, model: nn.Module) -> tuple[int, int]:
    """Bytes of the arrays and tensors reachable from `holder`, and of the Python objects between them.

    Args:
        holder: where the search starts.
        model: its parameters and buffers are not counted.
    """
    mine = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    arrays: dict[int, int] = {}
    objects, seen, waiting = 0, set[int](), [holder]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, _OTHERS):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in mine:
                arrays[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, np.ndarray):
            if thing.base is not None:  # a view: of another array, of a tensor, of bytes
                waiting.append(thing.base)
            else:
                arrays[thing.__array_interface__["data"][0]] = thing.nbytes
            waiting.extend(thing.reshape(-1) if thing.dtype == object else [])
        else:
            objects += sys.getsizeof(thing)
            waiting.extend(gc.get_referents(thing))
    return sum(arrays.values()), objects


def allocated_by(call: Callable[[], Any]) -> int:
    """The most bytes that Python and numpy had allocated at one time during the call, on top of those before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
