"""Loss and gradient along the gradient, against functions whose every derivative is known."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ics_apps.norms import make_norm
from ics_apps.probes.landscape import landscape
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError


class Quadratic(nn.Module):
    """L = w'H w / 2 with a symmetric H."""

    def __init__(self, hessian: torch.Tensor, at: torch.Tensor) -> None:
        super().__init__()
        self.hessian = hessian
        self.w = nn.Parameter(at)

    def loss(self) -> torch.Tensor:
        return 0.5 * self.w @ self.hessian @ self.w


def quadratic(seed: int, size: int = 6) -> Quadratic:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return Quadratic(a + a.T, torch.randn(size, generator=generator, dtype=torch.float64))


@given(seed=st.integers(0, 2**31), size=st.floats(1e-3, 10))
def test_the_smoothness_of_a_quadratic_is_that_of_its_hessian_along_the_gradient_at_every_step(seed, size):
    model = quadratic(seed)
    g = model.hessian @ model.w.detach()
    with Objective(model, model.loss) as objective:
        found = landscape(objective, [size / 3, size])
    expected = float((model.hessian @ g).norm() / g.norm())
    assert found.smoothness == pytest.approx(np.full(2, expected), rel=1e-8)
    assert found.beta == found.smoothness.max()
    assert found.gradient_norm == pytest.approx(float(g.norm()), rel=1e-12)


def test_losses_are_those_of_the_function_at_the_moved_weights():
    model = quadratic(3)
    start, g = model.w.detach().clone(), model.hessian @ model.w.detach()
    sizes = [0.01, 0.1, 1.0]
    with Objective(model, model.loss) as objective:
        found = landscape(objective, sizes)
    expected = [float(0.5 * (start - e * g) @ model.hessian @ (start - e * g)) for e in sizes]
    assert found.losses == pytest.approx(expected, rel=1e-12)
    assert found.loss == float(0.5 * start @ model.hessian @ start)
    assert found.loss_range == (found.losses.min(), found.losses.max())
    assert found.gradient_range == (found.gradient_changes.min(), found.gradient_changes.max())


def test_the_weights_are_back_while_the_objective_is_still_open():
    model = quadratic(0)
    before = model.w.detach().clone()
    with Objective(model, model.loss) as objective:
        landscape(objective, [0.3, 3.0])
        assert torch.equal(model.w.detach(), before)


def test_a_loss_that_is_not_finite_on_the_way_is_infinite_and_has_no_gradient():
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    with Objective(model, lambda: model(torch.ones(1, 1, dtype=torch.float64)).sum().sqrt()) as objective:
        found = landscape(objective, [0.1, 4.0])  # g = 1/2, so the second step leads to sqrt(-1)
    assert math.isfinite(found.losses[0])
    assert found.losses[1] == math.inf
    assert math.isnan(found.gradient_changes[1])
    assert found.beta == found.smoothness[0]


def test_a_flat_loss_has_no_direction():
    model = nn.Linear(2, 1)
    objective = Objective(model, lambda: 0 * model(torch.ones(1, 2)).sum())
    with objective, pytest.raises(ProbeError, match="no direction"):
        landscape(objective, [1.0])


def test_an_array_of_step_sizes_will_do():
    model = quadratic(0)
    with Objective(model, model.loss) as objective:
        found = landscape(objective, np.geomspace(0.1, 1.0, 3))
    assert found.step_sizes == pytest.approx([0.1, math.sqrt(0.1), 1.0])


def test_the_gradient_of_an_embedding_may_be_sparse():
    torch.manual_seed(0)
    dense, tokens = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 1)).double(), torch.randint(10, (6,))
    sparse = copy.deepcopy(dense)
    sparse[0].sparse = True
    found = []
    for model in (dense, sparse):
        with Objective(model, lambda model=model: model(tokens).square().mean()) as objective:
            found.append(landscape(objective, [0.1, 1.0]).smoothness)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize("sizes", [[], [0.0], [-1.0, 1.0], [math.inf], [math.nan]])
def test_step_sizes_are_above_zero(sizes):
    model = quadratic(0)
    with Objective(model, model.loss) as objective, pytest.raises(ValueError, match="step_sizes"):
        landscape(objective, sizes)


def test_dropout_masks_and_batch_statistics_are_the_same_along_the_way():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), make_norm("batch", 16, dim=0), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1))
    x = torch.randn(8, 4)
    with Objective(model, lambda: model(x).square().mean()) as objective:
        found = landscape(objective, [1e-12])
    # Another mask would change the gradient by as much as the gradient itself.
    assert found.gradient_changes[0] < 1e-4 * found.gradient_norm
    assert found.losses[0] == pytest.approx(found.loss, rel=1e-6)
