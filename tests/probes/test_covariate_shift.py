"""Internal covariate shift against its definition: a copy of the model with mixed weights, and a full backward pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from ics_apps.probes.covariate_shift import LayerShift, ShiftMeter, covariate_shift
from ics_apps.probes.preserve import ProbeError

Step = Callable[[], None]


class Net(nn.Module):
    """Batch norm, dropout, a residual branch, a tied matrix, a frozen layer; not registered in forward order."""

    # By hand, in forward order; the tied matrix has the first of its names.
    LAYERS = (
        ("stem.weight", "norm.weight", "norm.bias"),
        ("left.weight", "left.bias"),
        ("right.weight", "right.bias", "after.weight", "after.bias"),
        ("head.weight", "tied.bias"),
        ("head.bias",),
    )

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6)
        self.stem = nn.Conv1d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.right = nn.Linear(6, 6)
        self.left = nn.Linear(6, 6)
        self.after = nn.BatchNorm1d(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.tied = nn.Linear(6, 6)
        self.head.weight = self.tied.weight
        self.dropout = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.norm(self.stem(x)).relu()).mean(-1)
        h = self.left(h).tanh() + self.after(self.right(h))
        y: Tensor = self.head(self.dropout(self.tied(self.frozen(h)).tanh()))
        return y


def net_and_loss() -> tuple[Net, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(0)
    net = Net().double()
    x, target = torch.randn(8, 2, 7).double(), torch.randn(8, 6).double()
    return net, lambda model: (model(x) - target).square().mean()


def stepper(model: nn.Module, loss: Callable[[], Tensor], *optimizers: torch.optim.Optimizer) -> Step:
    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def oracle(
    old: nn.Module, new: nn.Module, loss: Callable[[nn.Module], Tensor], layers: Sequence[Sequence[str]]
) -> list[tuple[Tensor, Tensor]]:
    """(G, G') of each layer, straight from the definition; the random state is the present one."""
    state = torch.get_rng_state()

    def gradient(moved: Sequence[str], of: Sequence[str]) -> Tensor:
        mixed = copy.deepcopy(old)
        weights, stepped = dict(mixed.named_parameters()), dict(new.named_parameters())
        for name in moved:
            weights[name].data.copy_(stepped[name].data)
        torch.set_rng_state(state)
        mixed.zero_grad()
        loss(mixed).backward()
        torch.set_rng_state(state)
        return torch.cat([weights[name].grad.flatten() for name in of])  # type: ignore[union-attr]

    below = [[name for layer in layers[:place] for name in layer] for place in range(len(layers))]
    return [(gradient([], layer), gradient(moved, layer)) for layer, moved in zip(layers, below, strict=True)]


OPTIMIZERS: dict[str, Callable[[nn.Module], list[torch.optim.Optimizer]]] = {
    "momentum and decay": lambda m: [torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.9, weight_decay=0.1)],
    "adamw": lambda m: [torch.optim.AdamW(m.parameters(), lr=0.05)],
    "two": lambda m: [
        torch.optim.SGD([p for n, p in m.named_parameters() if n.startswith("stem")], lr=0.5),
        torch.optim.Adam([p for n, p in m.named_parameters() if not n.startswith("stem")], lr=0.05),
    ],
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_layer_is_what_the_definition_says(kind: str) -> None:
    net, loss_of = net_and_loss()
    optimizers = OPTIMIZERS[kind](net)
    step = stepper(net, lambda: loss_of(net), *optimizers)
    step()  # so that momentum is there
    old = copy.deepcopy(net)
    meter = ShiftMeter(net, lambda: loss_of(net))
    state = torch.get_rng_state()
    meter.before()
    step()
    rows = meter.after()
    torch.set_rng_state(state)
    expected = oracle(old, net, loss_of, Net.LAYERS)
    assert [row.order for row in rows] == [0, 1, 2, 3, 4]
    for row, (g, h) in zip(rows, expected, strict=True):
        assert row.grad_norm == pytest.approx(float(g.norm()), rel=1e-10)
        assert row.shift == pytest.approx(float((g - h).norm()), rel=1e-10, abs=1e-16)
        assert row.relative_shift == pytest.approx(float((g - h).norm() / g.norm()), rel=1e-10, abs=1e-16)
        assert row.cosine == pytest.approx(float(g @ h / g.norm() / h.norm()), abs=1e-10)
    # The test sees something: all but the first layer shift.
    assert min(row.relative_shift for row in rows[1:]) > 1e-3


def in_one_call(net: nn.Module, loss_of: Callable[[nn.Module], Tensor], **options: object) -> list[LayerShift]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    step = stepper(net, lambda: loss_of(net), optimizer)
    return covariate_shift(net, lambda: loss_of(net), step, optimizers=[optimizer], **options)  # type: ignore[arg-type]


def test_the_first_layer_has_no_shift_though_dropout_is_drawn_anew() -> None:
    rows = in_one_call(*net_and_loss())
    assert (rows[0].layer, rows[0].shift, rows[0].relative_shift, rows[0].cosine) == ("stem", 0.0, 0.0, 1.0)


def test_the_names_are_those_of_the_modules_that_run() -> None:
    rows = in_one_call(*net_and_loss())
    assert [row.layer for row in rows] == ["stem", "left", "right", "tied", "head"]


def test_a_product_of_two_weights_shifts_by_what_the_lower_one_moved() -> None:
    # L = w2 w1 x, so G_2 = w1 x whatever w2 is.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(2.0)
    x = torch.full((1, 1), 3.0).double()

    def step() -> None:
        model[0].weight.data.fill_(-1.0)
        model[1].weight.data.fill_(100.0)

    first, second = covariate_shift(model, lambda: model(x).sum(), step)
    assert (second.grad_norm, second.shift, second.relative_shift, second.cosine) == (6.0, 9.0, 1.5, -1.0)
    assert first.shift == 0.0


def test_weights_that_do_not_move_give_no_shift_at_all() -> None:
    net, loss_of = net_and_loss()
    rows = covariate_shift(net, lambda: loss_of(net), lambda: None)
    assert [(row.shift, row.cosine) for row in rows] == [(0.0, 1.0)] * 5


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for entries in optimizer.state.values() for value in entries.values() if isinstance(value, Tensor)]
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return [t.detach().clone() for t in (*net.state_dict().values(), *moments, *gradients, torch.get_rng_state())]


def test_the_step_is_taken_back_to_the_bit() -> None:
    net, loss_of = net_and_loss()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    step = stepper(net, lambda: loss_of(net), optimizer)
    step()
    before = state_of(net, optimizer)
    covariate_shift(net, lambda: loss_of(net), step, optimizers=[optimizer])
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(net, optimizer), strict=True))


def test_a_measured_step_is_the_step_that_would_have_been_taken() -> None:
    def state_after_three_steps(measured: bool) -> list[Tensor]:
        net, loss_of = net_and_loss()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        step = stepper(net, lambda: loss_of(net), optimizer)
        meter = ShiftMeter(net, lambda: loss_of(net))
        for _ in range(3):
            if measured:
                meter.before()
            step()
            if measured:
                meter.after()
        return state_of(net, optimizer)

    states = state_after_three_steps(False), state_after_three_steps(True)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_chosen_layers_have_the_figures_that_they_have_among_all() -> None:
    everything = {row.layer: row for row in in_one_call(*net_and_loss())}
    chosen = in_one_call(*net_and_loss(), layers=["tied", "left"])
    assert chosen == [everything["left"], everything["tied"]]


def test_all_layers_cost_at_most_two_forward_passes_more_than_there_are_layers() -> None:
    net, loss_of = net_and_loss()
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(net)

    covariate_shift(net, loss, lambda: None)
    assert calls == len(Net.LAYERS) + 2


def test_a_backward_pass_stops_at_its_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    passed: list[int] = []

    def loss() -> Tensor:
        h = torch.ones(1, 2)
        for place, layer in enumerate(model):
            h = layer(h)
            h.register_hook(lambda _gradient, place=place: passed.append(place))  # type: ignore[misc, no-untyped-call]
        return h.sum()

    meter = ShiftMeter(model, loss, layers="2")
    meter.before()
    passed.clear()
    meter.after()
    assert passed == [2]


@pytest.mark.parametrize("around_the_caller", [False, True])
def test_autocast_sees_the_weights_that_moved(around_the_caller: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(8, 4)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x).float().square().mean()

    def step() -> None:
        for parameter in model.parameters():
            parameter.data.mul_(0.5)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around_the_caller):
        loss()  # autocast remembers what it cast
        first, second = covariate_shift(model, loss, step)
    exact_model = copy.deepcopy(model)
    exact = covariate_shift(
        exact_model,
        lambda: exact_model(x).square().mean(),
        lambda: [p.data.mul_(0.5) for p in exact_model.parameters()],
    )
    assert first.shift == 0.0
    # bfloat16 has 8 bits, and there are two layers.
    assert second.relative_shift == pytest.approx(exact[1].relative_shift, rel=0.02)


def test_the_scale_of_amp_is_taken_out() -> None:
    net, loss_of = net_and_loss()
    shifts = []
    for scale in (1.0, 1024.0):
        meter = ShiftMeter(net, lambda: loss_of(net), grad_scale=scale)
        meter.before()
        shifts.append(meter.after()[1].grad_norm)
    assert shifts[0] == shifts[1]  # a power of two changes no digit


def test_a_zero_gradient_has_no_direction() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rows = covariate_shift(model, lambda: 0.0 * model(torch.ones(1, 2)).sum(), lambda: None)
    assert all(row.grad_norm == row.shift == 0.0 for row in rows)
    assert all(math.isnan(row.cosine) and math.isnan(row.relative_shift) for row in rows)


def test_a_layer_behind_detach_has_no_row_but_its_step_counts() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.above(self.below(x).detach())
            return y

    model = Cut()
    model.below.weight.data.fill_(1.0)
    [row] = covariate_shift(model, lambda: model(torch.ones(1, 1)).sum(), lambda: model.below.weight.data.fill_(3.0))
    assert (row.layer, row.order, row.grad_norm, row.shift) == ("above", 1, 1.0, 2.0)


def test_sparse_gradients_are_measured_too() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1))
    rows = covariate_shift(model, lambda: model(torch.tensor([1, 1, 3])).square().sum(), lambda: None)
    assert rows[0].grad_norm > 0
    assert rows[0].shift == 0.0


def test_a_batch_of_one_is_told_by_batch_norm_itself_and_the_model_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        covariate_shift(model, lambda: model(torch.ones(1, 2)).sum(), lambda: None)
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_what_cannot_be_measured_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    with pytest.raises(ProbeError, match="The loss has no graph"):
        covariate_shift(model, lambda: model(x).detach().sum(), lambda: None)
    with pytest.raises(ProbeError, match="No parameter of the model requires a gradient"):
        covariate_shift(nn.Flatten(), lambda: x.sum(), lambda: None)
    with pytest.raises(ProbeError, match="depends on no weights"):
        covariate_shift(model, lambda: (x.clone().requires_grad_() + model(x).detach()).sum(), lambda: None)
    with pytest.raises(ValueError, match="did you mean"):
        covariate_shift(model, lambda: model(x).sum(), lambda: None, layers="Liner")
    with pytest.raises(RuntimeError, match="call `before`"):
        ShiftMeter(model, lambda: model(x).sum()).after()
