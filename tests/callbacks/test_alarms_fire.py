"""Each alarm fires in a run that is built to fail in its way, in time, and names the layer."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.norms import NormalizedConcat
from ics_apps.probes.activations.alarms.choice import RULE_NAMES
from tests.callbacks import alarm_runs as runs

EVERY = 2  # steps between two samples


def classifier(net: nn.Module, optimizer: str = "sgd", lr: float = 0.02) -> runs.Supervised:
    return runs.Supervised(net, F.cross_entropy, optimizer, lr, 100)


class TwoRates(runs.Supervised):
    """The first layer has a learning rate of its own."""

    def __init__(self, net: nn.Sequential, **first: float) -> None:
        super().__init__(net, F.cross_entropy, "", 0, 0)
        self.first = first

    def configure_optimizers(self) -> Any:
        first, *others = self.net
        groups = [{"params": first.parameters(), **self.first}, {"params": nn.ModuleList(others).parameters()}]
        return torch.optim.SGD(groups, lr=0.05)


def deep_mlp(gain: float, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Ten layers whose first weights are `gain` times those of He et al. 2015."""
    net = nn.Sequential(*(runs.dense(16 if i == 0 else 32, 32, "none", act) for i in range(10)), nn.Linear(32, 4))
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)
    return net


def then(usual: list[runs.Batch], change: Callable[[Tensor], Tensor]) -> list[runs.Batch]:
    """The batches, and the same again with other inputs."""
    return usual + [(change(x), y) for x, y in usual]


# Runs that are built to fail. ----------------------------------------------------------------------------------------


def dead_units() -> tuple[LightningModule, Any]:
    net = runs.cnn("none")
    nn.init.constant_(net[1][0].bias, -20.0)
    return classifier(net), runs.gratings


def saturated() -> tuple[LightningModule, Any]:
    net = runs.tanh_mlp("none")
    with torch.no_grad():
        net[0][0].weight.mul_(30)
    return classifier(net), runs.points


def exploding_over_depth() -> tuple[LightningModule, Any]:
    return classifier(deep_mlp(gain=6.0), lr=1e-12), runs.points


def exploding_in_time() -> tuple[LightningModule, Any]:
    # A sign too many: the weights grow by a quarter a step.
    return TwoRates(runs.mlp("none"), lr=1e-3, weight_decay=-250.0), runs.points


def vanishing_over_depth() -> tuple[LightningModule, Any]:
    return classifier(deep_mlp(gain=0.1), lr=1e-6), runs.points


def vanishing_by_weight_decay() -> tuple[LightningModule, Any]:
    return TwoRates(runs.mlp("none"), lr=1e-3, weight_decay=300.0), runs.points  # a factor of 0.7 a step


def exploding_gradient() -> tuple[LightningModule, Any]:
    return classifier(deep_mlp(gain=6.0), lr=1e-12), runs.points


def gradient_jump() -> tuple[LightningModule, Any]:
    module = runs.Supervised(runs.mlp("none"), lambda y, scale: y.square().mean() * scale, "sgd", 1e-6, 0)
    x = torch.randn(runs.BATCH, 16)
    return module, [(x, torch.tensor(scale)) for scale in [1.0] * 30 + [1e3] * 10]


def vanishing_gradient() -> tuple[LightningModule, Any]:
    return classifier(deep_mlp(gain=0.7, act=nn.Sigmoid)), runs.points


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def infinite_in_the_forward() -> tuple[LightningModule, Any]:
    net = nn.Sequential(runs.dense(16, 32, "none"), Logarithm(), runs.dense(32, 32, "none"), nn.Linear(32, 4))
    return classifier(net), runs.points


def broken_by_an_update() -> tuple[LightningModule, Any]:
    net = runs.mlp("none")
    steps = iter(range(100))

    def loss(y: Tensor, label: Tensor) -> Tensor:
        # The slope of a square root at 0 is infinite.
        root = (0 * net[1][0].weight).sum().sqrt() if next(steps) == 5 else 0
        return F.cross_entropy(y, label) + root

    return runs.Supervised(net, loss, "sgd", 0.02, 0), runs.points


def data_jump() -> tuple[LightningModule, Any]:
    return classifier(runs.cnn("none")), then([runs.gratings(runs.BATCH) for _ in range(30)], lambda x: x + 3)


def slow_statistics() -> tuple[LightningModule, Any]:
    net = runs.cnn("batch")
    net[0][1].momentum = 1e-4
    return classifier(net), [(x + 10, y) for x, y in (runs.gratings(8) for _ in range(90))]


def shifted_statistics() -> tuple[LightningModule, Any]:
    return classifier(runs.cnn("batch")), then([runs.gratings(8) for _ in range(60)], lambda x: x + 3)


def small_batch() -> tuple[LightningModule, Any]:
    return classifier(runs.cnn("batch")), [runs.gratings(2) for _ in range(21)]


def constant_channel() -> tuple[LightningModule, Any]:
    net = runs.cnn("none")
    filters = net[1][0].weight
    with torch.no_grad():
        filters[:12] = 0
        net[1][0].bias.fill_(0.5)
    filters.register_hook(lambda gradient: gradient * (torch.arange(24) >= 12)[:, None, None, None])  # pruned
    return classifier(net), runs.gratings


def wild_rate() -> tuple[LightningModule, Any]:
    # A weight before a norm turns by sqrt(2 lr weight_decay) = 0.45 a step.
    return TwoRates(runs.mlp("batch"), lr=1.0, weight_decay=0.1), runs.points


def tiny_rate() -> tuple[LightningModule, Any]:
    return TwoRates(runs.mlp("layer"), lr=1e-6), runs.points


class Joined(nn.Module):
    """Raw pixels of 0 to 255 beside features of unit size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(runs.conv(1, 8, "batch"), runs.conv(8, 8, "batch"))
        self.concat = NormalizedConcat({"skip": 1, "up": 8})
        self.end = nn.Sequential(runs.conv(9, 8, "batch", stride=2), *runs.pooled(8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.end(self.concat(skip=128 + 64 * x, up=self.body(x)))
        return y


def stream_mismatch() -> tuple[LightningModule, Any]:
    return classifier(Joined()), [runs.gratings(8) for _ in range(120)]


@dataclass(frozen=True)
class Failing:
    """A run, and the alarm that it must raise: where (a pattern), and from which to which step."""

    build: Callable[[], tuple[LightningModule, Any]]
    rule: str
    layer: str
    first: int
    last: int
    says: str = ""


CASES = [
    Failing(dead_units, "dead_units", "net.1.2", 2, 6),
    Failing(saturated, "saturated", "net.0.2", 4, 4),
    Failing(exploding_over_depth, "exploding_activation", "net.0.0", 2, 2, "to the last layers"),
    Failing(exploding_in_time, "exploding_activation", "net.1.0", 24, 32, "in the first sample"),
    Failing(vanishing_over_depth, "vanishing_activation", "net.0.0", 4, 4, "to the last layers"),
    Failing(vanishing_by_weight_decay, "vanishing_activation", r"net\.0\.[02]", 20, 32, "first sample"),
    Failing(exploding_gradient, "exploding_gradient", "net.0.0", 2, 2, "from the last layers back"),
    Failing(gradient_jump, "exploding_gradient", "net.0.0", 32, 32, "over the samples before"),
    Failing(vanishing_gradient, "vanishing_gradient", "net.0.0", 4, 4),
    Failing(infinite_in_the_forward, "nonfinite", "net.2.0", 0, 0, "layers after it"),
    Failing(broken_by_an_update, "nonfinite", "net.1.0", 6, 6, "its weights are not finite: an update broke it"),
    Failing(data_jump, "drift_spike", "net.0.0", 30, 30),
    Failing(slow_statistics, "running_statistics", "net.0.1", 50, 80, "running mean"),
    Failing(shifted_statistics, "running_statistics", "net.0.1", 62, 66, "running mean"),
    Failing(small_batch, "small_batch", r"net\.[12]\.1", 4, 20),
    Failing(constant_channel, "constant_channel", "net.1.0", 4, 8),
    Failing(wild_rate, "update_ratio", "net.0.0", 104, 110),
    Failing(tiny_rate, "update_ratio", "net.0.0", 104, 110, "while"),
    Failing(stream_mismatch, "stream_mismatch", "net.concat.skip", 104, 104, "concat.up"),
]


def run(case: Failing, folder: Path, steps: int | None = None, **options: Any) -> runs.Outcome:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, data = case.build()
        return runs.train(module, data, steps or case.last + 1, folder, every=EVERY, **options)


def test_there_is_a_failing_run_for_every_rule() -> None:
    assert {case.rule for case in CASES} == set(RULE_NAMES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.build.__name__)
def test_a_run_that_is_built_to_fail_raises_its_alarm_in_time(case: Failing, tmp_path: Path) -> None:
    alarm = run(case, tmp_path).of(case.rule).iloc[0]
    assert re.fullmatch(case.layer, alarm["layer"])
    assert case.first <= alarm["step"] <= case.last
    assert case.says in alarm["sentence"]


def test_stop_ends_training_at_the_step_of_the_alarm(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outcome = run(CASES[0], tmp_path, steps=50, on_alarm="stop", alarms=["dead_units"])
    assert outcome.alarms["step"].tolist() == [6]
    assert outcome.steps == 7
    lines = [str(warning.message) for warning in said]
    assert "ActivationMonitor stops training at step 6, since on_alarm is 'stop'." in lines


def test_log_writes_and_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outcome = run(CASES[0], tmp_path, on_alarm="log")
    assert len(outcome.of("dead_units")) == 1
    assert not [warning for warning in said if "ActivationMonitor" in str(warning.message)]
    assert "dead" not in "".join(capsys.readouterr())


def intermittent() -> tuple[LightningModule, Any]:
    """Every fourth batch is broken, and left out of the loss."""

    def loss(y: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(y, label) if y.isfinite().all() else 0 * next(net.parameters()).sum()

    net = runs.mlp("none")
    batches = [runs.points(runs.BATCH) for _ in range(40)]
    return runs.Supervised(net, loss, "sgd", 0.02, 0), [
        (x * math.inf if index % 4 == 0 else x, y) for index, (x, y) in enumerate(batches)
    ]


def test_warn_says_at_most_three_lines_a_rule_and_the_file_has_all(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outcome = run(Failing(intermittent, "nonfinite", "net.0.0", 0, 39), tmp_path, on_alarm="warn")
    lines = [str(warning.message) for warning in said if "(nonfinite)" in str(warning.message)]
    assert len(lines) == 3
    assert "Further ones are only in the file." in lines[2]
    assert len(outcome.of("nonfinite")) == 10
