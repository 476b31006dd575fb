"""What the leakage check finds in strangers' modules, what it writes, says and raises, and what it leaves alone."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps.callbacks.leakage_check import LeakageCheck, LeakageError


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "leakage.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sources_of(folder: Path) -> list[str]:
    return [row["module"] for row in rows_of(folder) if row["is_source"] == "True"]


class Trained(LightningModule):
    """A network, and a training step that calls it."""

    def __init__(self, net: nn.Module, step: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.augment = nn.Dropout(0.1)
        self.net = net
        self._step = step or (lambda net, batch: net(batch).square().mean())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self._step(self.net, self.augment(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def network(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize("name", ["classifier", "checkpointed", "shared"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batch_norm_in_training_is_found_and_training_does_not_notice(
    name: str,
    precision: str,
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    finals = []
    for callbacks in ([], [LeakageCheck(every_n_steps=5, allow="BatchNorm2d", dirpath=tmp_path)]):
        torch.manual_seed(0)
        module = strangers[name]()
        make_trainer(*callbacks, precision=precision).fit(module, batches)
        finals.append((module.state_dict(), torch.get_rng_state()))
    (plain, state), (watched, state_watched) = finals
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert torch.equal(state, state_watched)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["step", *LeakageCheck.tables["leakage"]]
    assert sorted({int(row["step"]) for row in rows}) == [0, 5, 10, 15, 20]
    assert {row["module"] for row in rows if row["is_source"] == "True"} == {"body.1"}
    assert {row["allowed"] for row in rows if row["module"] == "body.1"} == {"True"}
    assert all(float(row["ratio"]) > 0 for row in rows if row["module"] == "body.1")


def test_a_leak_is_said_once_with_module_ratio_and_remedy(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    check = LeakageCheck(every_n_steps=5, dirpath=tmp_path)
    with pytest.warns(UserWarning, match="LeakageCheck") as caught:
        make_trainer(check).fit(Trained(network(nn.BatchNorm2d(4))), batches)
    said = [str(warning.message) for warning in caught if "LeakageCheck" in str(warning.message)]
    assert len(said) == 1
    assert "net.1 (BatchNorm2d), ratio " in said[0]
    assert "`allow`" in said[0]
    assert sources_of(tmp_path) == ["net.1"] * 5


@pytest.mark.parametrize("norm", [nn.Identity(), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.BatchNorm2d(4)])
def test_a_network_that_keeps_samples_apart_is_left_in_peace(
    norm: nn.Module, batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Frozen(Trained):
        """Its norm is in evaluation mode."""

        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            norm.eval()

    make_trainer(LeakageCheck(on_leak="raise", dirpath=tmp_path)).fit(Frozen(network(norm)), batches)
    assert {row["ratio"] for row in rows_of(tmp_path)} == {"0.0"}


def test_a_leak_can_end_the_training(batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer]) -> None:
    module = Trained(network(nn.BatchNorm2d(4)))
    with pytest.raises(LeakageError, match=r"net\.1 \(BatchNorm2d\)"):
        make_trainer(LeakageCheck(on_leak="raise")).fit(module, batches)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(("name", "expected"), [("g", ["g.1"]), ("d", [])])
def test_a_gan_that_steps_by_hand_is_checked_by_the_name_of_a_network(
    name: str,
    expected: list[str],
    strangers: dict[str, type[LightningModule]],
    batches: DataLoader[Tensor],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    states = []
    for callbacks in ([], [LeakageCheck(module=name, allow=["[gd].1"], dirpath=tmp_path)]):
        torch.manual_seed(0)
        module = strangers["gan"]()
        make_trainer(*callbacks).fit(module, batches)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert sources_of(tmp_path) == expected
    assert {row["module"].split(".")[0] for row in rows_of(tmp_path)} == {name}


def test_a_teacher_and_modules_without_weights_are_not_taken_for_the_network(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Distilled(Trained):
        def __init__(self) -> None:
            super().__init__(network(nn.GroupNorm(2, 4)))
            self.teacher = network(nn.BatchNorm2d(4))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            with torch.no_grad():
                wanted = self.teacher(batch)
            return (self.net(self.augment(batch)) - wanted).square().mean()

    make_trainer(LeakageCheck(on_leak="raise", dirpath=tmp_path)).fit(Distilled(), batches)
    assert {row["module"].split(".")[0] for row in rows_of(tmp_path)} == {"net"}


def test_a_planted_reshape_is_named_where_it_is(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Reshaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1).reshape(x.shape)

    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Sequential(nn.Tanh(), Reshaped()), nn.Flatten(), nn.Linear(96, 2))
    with pytest.warns(UserWarning, match=r"net\.1\.1 \(Reshaped\)"):
        make_trainer(LeakageCheck(dirpath=tmp_path)).fit(Trained(net), batches)


def test_accumulated_batches_are_checked_once_a_step(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    check = LeakageCheck(every_n_steps=1, allow="net.1", module="net", dirpath=tmp_path)
    make_trainer(check, accumulate_grad_batches=4, max_epochs=1).fit(Trained(network(nn.BatchNorm2d(4))), batches)
    assert sorted(int(row["step"]) for row in rows_of(tmp_path) if row["module"] == "net.1") == [0, 1, 2]


def test_a_compiled_network_is_checked(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    net = torch.compile(network(nn.BatchNorm2d(4)), backend="eager")
    make_trainer(LeakageCheck(module="net", allow="BatchNorm2d", dirpath=tmp_path)).fit(Trained(net), batches)
    assert sources_of(tmp_path) == ["net.1"]


def test_a_network_that_the_step_does_not_call_is_said_and_training_goes_on(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer]
) -> None:
    module = Trained(network(nn.GroupNorm(2, 4)), lambda net, batch: net[0](batch).square().mean())
    with pytest.warns(UserWarning, match="measures no more in this run: No call of net with a tensor was seen"):
        make_trainer(LeakageCheck(module="net")).fit(module, batches)


def test_a_misspelt_module_is_named_before_training(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer]
) -> None:
    with pytest.raises(ValueError, match=r"LeakageCheck\.module is 'nett', which Trained does not have; did you mean"):
        make_trainer(LeakageCheck(module="nett")).fit(Trained(network(nn.Identity())), batches)


def test_the_hooks_are_off_outside_checked_steps(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer]
) -> None:
    hooked = []

    def step(net: nn.Module, batch: Tensor) -> Tensor:
        hooked.append(bool(net._forward_pre_hooks))
        return net(batch).square().mean()

    make_trainer(LeakageCheck(every_n_steps=8), max_epochs=1).fit(Trained(network(nn.GroupNorm(2, 4)), step), batches)
    assert hooked == [place in (0, 8) for place in range(12)]


def test_the_figures_go_to_the_loggers(
    batches: DataLoader[Tensor], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    measured: list[Any] = []

    class Noting(LeakageCheck):
        def write(self, trainer: Trainer, step: int, measured_: Any) -> None:
            measured.append(measured_)
            super().write(trainer, step, measured_)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        make_trainer(Noting(dirpath=tmp_path)).fit(Trained(network(nn.BatchNorm2d(4))), batches)
    assert measured[0].scalars["leakage/sources"] == 1.0
    assert 0 < measured[0].scalars["leakage/ratio"] < 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"on_leak": "stop"}, "on_leak is 'stop'"),
        ({"batch_axis": -1}, "batch_axis is -1"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LeakageCheck(**options)
