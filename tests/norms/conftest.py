"""Every registered norm in every dimension it is defined for, and small inputs of each shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import list_norms, make_norm, norm_entry
from ics_apps.norms.registry import Dim, NormConfig

CHANNELS = 4
SHAPES: dict[Dim, tuple[int, ...]] = {
    0: (3, CHANNELS),
    1: (3, CHANNELS, 5),
    2: (3, CHANNELS, 3, 2),
    3: (3, CHANNELS, 2, 3, 2),
    "tokens": (3, 5, CHANNELS),
}
SMALL_SPECS: dict[str, NormConfig] = {"group": {"name": "group", "num_groups": 2}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `norm` and `dim` over all defined pairs, one that asks for `norm` over all names."""
    names = set(metafunc.fixturenames)
    if {"norm", "dim"} <= names:
        pairs = [(norm, dim) for norm in list_norms() for dim in norm_entry(norm).dims]
        metafunc.parametrize(("norm", "dim"), pairs, ids=[f"{norm}-{dim}" for norm, dim in pairs])
    elif "norm" in names:
        metafunc.parametrize("norm", list_norms())


@pytest.fixture
def layer() -> Callable[..., nn.Module]:
    """Build a norm of 4 channels in float64 whose parameters all matter (none is at a start value of 0 or 1)."""

    def build(norm: str, dim: Dim) -> nn.Module:
        module = make_norm(SMALL_SPECS.get(norm, norm), CHANNELS, dim).double()
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
        return module

    return build


@pytest.fixture
def values() -> Callable[..., Tensor]:
    """Random float64 inputs of the shape that a dimension asks for."""

    def draw(dim: Dim, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(SHAPES[dim], generator=generator, dtype=torch.float64) * 2 + 0.7

    return draw
