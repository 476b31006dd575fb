"""Whether a forward pass is the second one, by which activation checkpointing restores what it did not keep."""

from __future__ import annotations

import torch


def in_recompute() -> bool:
    """Whether this forward runs inside a backward pass, as the recomputation of a checkpointed layer does.

    Running statistics that moved at both passes would move twice a step.

    Example:
        >>> in_recompute()
        False
    """
    # torch has no public question for it. A compiler traces one graph of both passes and moves buffers once.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
