"""What the Hessian monitor writes, and that training does not notice it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks.hessian_monitor import HessianMonitor
from ics_apps.probes.objective import Objective
from ics_apps.probes.spectrum import POINTS, curvature


class Line(LightningModule):
    """A linear loss, two optimizers of different rates by default."""

    def __init__(self, rates: tuple[float, ...] = (0.1, 0.5)) -> None:
        super().__init__()
        self.rates = rates
        self.net = nn.Linear(36, 1)
        self.automatic_optimization = len(rates) == 1

    def probe_loss(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.net(batch.flatten(1)).mean()
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.probe_loss(batch)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SGD([parameter], lr=rate)
            for parameter, rate in zip(self.net.parameters(), self.rates, strict=False)
        ]


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def monitor(tmp_path: Path) -> Callable[..., HessianMonitor]:
    return lambda **options: HessianMonitor(**{"every_n_steps": 10, "dirpath": tmp_path, **options})


def test_a_row_holds_the_figures_of_the_step_before_which_it_was_measured(
    monitor: Callable[..., HessianMonitor],
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module = strangers["classifier"]()
    seen: list[Any] = []

    class Noting(HessianMonitor):
        def measure(self, occasion: Any) -> Any:
            with Objective(occasion.module, occasion.loss) as objective:
                seen.append(curvature(objective))
            return super().measure(occasion)

    make_trainer(Noting(every_n_steps=10, dirpath=tmp_path)).fit(module, batches)
    rows = rows_of(tmp_path, "hessian")
    assert [row["step"] for row in rows] == ["0", "10", "20"]
    for row, true in zip(rows, seen, strict=True):
        assert float(row["lambda_max"]) == true.extremes.largest[0].value
        assert float(row["lambda_max_bound"]) == true.extremes.largest[0].bound
        assert float(row["lambda_min"]) == true.extremes.smallest.value
        assert row["lambda_min_converged"] == str(true.extremes.smallest.converged)
        assert row["lambda_ratio"] == ("" if math.isnan(true.extremes.ratio) else str(true.extremes.ratio))
        assert float(row["trace"]) == true.spectrum.trace
        assert int(row["products"]) == true.products <= 70
        assert float(row["sharpness_limit"]) == 200
    assert set(rows[0]) == {"step", *HessianMonitor.tables["hessian"]}


def test_the_density_has_a_line_a_point(
    monitor: Callable[..., HessianMonitor],
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    make_trainer(monitor(every_n_steps=100)).fit(strangers["classifier"](), batches)
    rows = rows_of(tmp_path, "spectral_density")
    assert len(rows) == POINTS
    assert list(rows[0]) == ["step", "eigenvalue", "density"]
    grid, density = ([float(row[name]) for row in rows] for name in ("eigenvalue", "density"))
    assert torch.trapezoid(torch.tensor(density), torch.tensor(grid)).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["classifier", "checkpointed", "shared"])
def test_training_goes_on_as_if_nothing_had_been_measured(
    name: str,
    precision: str,
    monitor: Callable[..., HessianMonitor],
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    finals = []
    for callbacks in ([], [monitor(max_products=20, starts=1)]):
        torch.manual_seed(0)
        module = strangers[name]()
        make_trainer(*callbacks, precision=precision).fit(module, batches)
        finals.append((module.state_dict(), torch.get_rng_state()))
    (plain, state), (watched, state_watched) = finals
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert torch.equal(state, state_watched)
    assert len(rows_of(tmp_path, "hessian")) == 3


def test_a_linear_loss_leaves_empty_what_is_not_defined(
    monitor: Callable[..., HessianMonitor],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    make_trainer(monitor(every_n_steps=100)).fit(Line(), batches)
    (row,) = rows_of(tmp_path, "hessian")
    assert (row["lambda_max"], row["trace"], row["products"]) == ("0.0", "0.0", "3")
    assert (row["lambda_ratio"], row["effective_rank"], row["damped_condition"]) == ("", "", "")
    assert not rows_of(tmp_path, "spectral_density")


@pytest.mark.parametrize(("rates", "limit"), [((0.1, 0.5), "4.0"), ((0.5,), "4.0"), ((0.0,), "")])
def test_the_sharpness_limit_is_two_over_the_largest_rate(
    rates: tuple[float, ...],
    limit: str,
    monitor: Callable[..., HessianMonitor],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    make_trainer(monitor(every_n_steps=100), max_epochs=1).fit(Line(rates), batches)
    assert rows_of(tmp_path, "hessian")[0]["sharpness_limit"] == limit


def test_figures_that_are_defined_go_to_the_loggers(
    monitor: Callable[..., HessianMonitor], batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer]
) -> None:
    measured = []

    class Noting(HessianMonitor):
        def measure(self, occasion: Any) -> Any:
            measured.append(super().measure(occasion))
            return measured[-1]

    make_trainer(Noting(every_n_steps=100), max_epochs=1).fit(Line(), batches)
    scalars = measured[0].scalars
    assert scalars["hessian/lambda_max"] == 0
    assert scalars["hessian/lambda_min_converged"] == 1
    assert "hessian/lambda_ratio" not in scalars
    assert all(type(value) is float for value in scalars.values())


def test_a_module_that_steps_by_hand_without_a_probe_loss_is_told_what_to_do(
    monitor: Callable[..., HessianMonitor],
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    with pytest.warns(UserWarning, match="HessianMonitor measures no more in this run: .* `probe_loss"):
        make_trainer(monitor()).fit(strangers["gan"](), batches)
    assert not rows_of(tmp_path, "hessian")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"max_products": 44}, "3 starts need at least 45"),
        ({"starts": 0}, "starts is 0"),
        ({"tolerance": -1.0}, r"tolerance is -1\.0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HessianMonitor(**options)
