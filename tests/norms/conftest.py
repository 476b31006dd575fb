"""Every registered norm in every dimension it is defined for, and small inputs of each shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import list_norms, make_norm, norm_entry
from ics_apps.norms.registry import Dim

CHANNELS = 4
SHAPES: dict[Dim, tuple[int, ...]] = {
    0: (3, CHANNELS),
    1: (3, CHANNELS, 5),
    2: (3, CHANNELS, 3, 2),
    3: (3, CHANNELS, 2, 3, 2),
    "tokens": (3, 5, CHANNELS),
}
IN_TWO_GROUPS = ("group", "conditional_group", "evonorm_s0", "batch_channel")
SMALL_SPECS: dict[str, dict[str, Any]] = {
    **{name: {"name": name, "num_groups": 2} for name in IN_TWO_GROUPS},
    "ghost_batch": {"name": "ghost_batch", "batch_size": 2},
    "divisive": {"name": "divisive", "window": 3},
}
ON_ACTIVATIONS = [name for name in list_norms() if not norm_entry(name).acts_on_weight]
"""Norms on weights have tests of their own, since they do nothing to an activation."""
REFERENCE_SIZE = 2


def given_condition(norm: str, x: Tensor) -> Tensor | None:
    """What a test gives a conditional norm beside its input: the same for the same sample, whatever the batch."""
    if norm == "batch_per_domain":
        return torch.ones(len(x), dtype=torch.int64)
    if norm == "adaptive_instance":
        # Multiples of 1/8, the same number in every precision.
        eighths = torch.arange(x.shape[1:].numel(), device=x.device).reshape(x.shape[1:]) % 7 - 2
        return (eighths / 8).to(x.dtype).expand_as(x)
    return torch.arange(len(x)) % 3


def with_condition(norm: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
    """A forward pre-hook that adds the condition to a call without one."""
    return lambda module, inputs: (inputs[0], given_condition(norm, inputs[0])) if len(inputs) == 1 else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `norm` and `dim` over all defined pairs, one that asks for `norm` over all names."""
    names = set(metafunc.fixturenames)
    if {"norm", "dim"} <= names:
        pairs = [(norm, dim) for norm in ON_ACTIVATIONS for dim in norm_entry(norm).dims]
        metafunc.parametrize(("norm", "dim"), pairs, ids=[f"{norm}-{dim}" for norm, dim in pairs])
    elif "norm" in names:
        metafunc.parametrize("norm", ON_ACTIVATIONS)


def reference_batch(dim: Dim) -> Tensor:
    """The reference of virtual batch norm: as many samples as `REFERENCE_SIZE`."""
    generator = torch.Generator().manual_seed(9)
    shape = (REFERENCE_SIZE, *SHAPES[dim][1:])
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.2


@pytest.fixture
def layer() -> Callable[..., nn.Module]:
    """Build a norm of 4 channels in float64 whose parameters all matter (none is at a start value of 0 or 1)."""

    def build(norm: str, dim: Dim, smooth: bool = False, **options: float) -> nn.Module:
        spec = {"name": norm, **SMALL_SPECS.get(norm, {}), **options}
        module = make_norm(spec, CHANNELS, dim, smooth=smooth).double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    # Positive, so that variances and eps-guarded scales stay valid.
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
            for name, parameter in module.named_parameters():
                if name == "threshold":
                    # Low enough that the linear unit cuts some values, not all.
                    parameter.fill_(-0.5)
                if name == "rho":
                    # Inside its range, where it has a gradient.
                    parameter.fill_(0.3)
        if norm == "virtual_batch":
            module(reference_batch(dim), REFERENCE_SIZE)
        elif norm_entry(norm).needs_condition:
            module.register_forward_pre_hook(with_condition(norm))
        return module

    return build


@pytest.fixture
def values() -> Callable[..., Tensor]:
    """Random float64 inputs of the shape that a dimension asks for."""

    def draw(dim: Dim, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(SHAPES[dim], generator=generator, dtype=torch.float64) * 2 + 0.7

    return draw
