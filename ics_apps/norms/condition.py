"""Conditions that reach a norm deep inside a net: by context, or as an argument of its call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ics_apps.nearest import did_you_mean
from ics_apps.norms.options import NormError

CONDITIONS = ("domain", "label", "style", "reference")
"""domain: int64 (B,), the domain of each sample. label: int64 (B,) classes or float (B, E) vectors. style: a feature
map (B or 1, C, *S) to take the moments from. reference: an int, how many samples at the front of the batch are the
reference batch."""

# Not thread-local: the backward pass of a GPU runs in another thread, and a checkpointed layer is run again there.
_current: dict[str, Any] = {}


@contextmanager
def norm_context(**conditions: Any) -> Iterator[None]:
    """Give every conditional norm inside the block its condition.

    An inner block adds to an outer one. A net with activation checkpointing runs layers again in the backward pass:
    keep `loss.backward()` inside the block then.

    Args:
        conditions: Some of `CONDITIONS`.

    Raises:
        NormError: An unknown kind of condition.

    Example:
        >>> import torch
        >>> from ics_apps.norms import make_norm
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), make_norm("batch_per_domain", 8))
        >>> with norm_context(domain=torch.tensor([0, 1, 1, 0])):
        ...     y = net(torch.randn(4, 1, 8, 8))
    """
    for kind in conditions:
        if kind not in CONDITIONS:
            raise NormError(
                f"unknown condition {kind!r}{did_you_mean(kind, CONDITIONS)} Known: {', '.join(CONDITIONS)}"
            )
    before = dict(_current)
    _current.update(conditions)
    try:
        yield
    finally:
        _current.clear()
        _current.update(before)


def condition(kind: str, given: Any = None) -> Any:
    """The condition given in the call, else that of the context.

    Raises:
        NormError: There is neither.
    """
    if given is not None:
        return given
    if kind not in _current:
        raise NormError(
            f"this norm needs a condition and got none: call it as norm(x, {kind}) or run the net inside "
            f"`with norm_context({kind}=...)`"
        )
    return _current[kind]


def optional_condition(kind: str) -> Any | None:
    """The condition of the context, or None."""
    return _current.get(kind)


def check_ids(kind: str, ids: Any, batch: int, number: int, option: str) -> Tensor:
    """The ids themselves, if they are one integer in [0, number) for each of `batch` samples.

    Raises:
        NormError: They are not; `option` names what sets their number.
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or tuple(ids.shape) != (batch,):
        got = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else repr(ids)
        raise NormError(f"{kind} is a tensor of one integer for each of the {batch} samples, got {got}")
    # Reading values would wait for a GPU and break a compiled graph; there the lookup itself fails.
    if ids.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= number:
            raise NormError(
                f"{kind} {low if low < 0 else high} is out of range: {option} is {number}, so 0 to {number - 1}"
            )
    return ids.long()
