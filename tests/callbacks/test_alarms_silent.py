"""Healthy runs raise no alarm: nets of many kinds with and without norms, that learn, watched beyond every warm-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from tests.callbacks import alarm_runs as runs

# The longest warm-up is 100 steps; samples are 4 steps apart.
STEPS, FEW_STEPS = 200, 160
SEEDS = (0, 1, 2)


Run = tuple[LightningModule, Callable[[int], runs.Batch]]


def classify(
    net: Callable[[str], nn.Module], data: Callable[[int], runs.Batch], optimizer: str, lr: float, lr_without: float = 0
) -> Callable[[str], Run]:
    """Runs of a net with each norm, and with another learning rate without norms."""

    def build(norm: str) -> Run:
        rate = lr_without if norm == "none" and lr_without else lr
        return runs.Supervised(net(norm), F.cross_entropy, optimizer, rate, STEPS), data

    return build


# Nets, optimizers and learning rates as one would choose them.
HEALTHY: dict[str, Callable[[str], Run]] = {
    "cnn-sgd": classify(runs.cnn, runs.gratings, "sgd", 0.1, 0.02),
    "cnn-adam": classify(runs.cnn, runs.gratings, "adam", 1e-3),
    "gelu-cnn-adamw": classify(runs.gelu_cnn, runs.gratings, "adamw", 3e-3),
    "resnet-sgd": classify(runs.resnet, runs.gratings, "sgd", 0.1, 0.005),  # at 0.02 without norms the loss leaps
    "resnet-adamw": classify(runs.resnet, runs.gratings, "adamw", 3e-3),
    "vit-adamw": classify(runs.vit, runs.gratings, "adamw", 1e-3),
    "unet-adam": classify(runs.unet, runs.discs, "adam", 1e-3),
    "unet-sgd": classify(runs.unet, runs.discs, "sgd", 0.1),
    "unet-streams-adamw": classify(runs.unet_streams, runs.discs, "adamw", 2e-3),
    "mlp-adam": classify(runs.mlp, runs.points, "adam", 3e-3),
    "tanh-mlp-sgd": classify(runs.tanh_mlp, runs.points, "sgd", 0.1, 0.02),
    "regression-adam": lambda norm: (
        runs.Supervised(runs.regressor(norm), F.mse_loss, "adam", 3e-2, STEPS),
        runs.prices,
    ),
    "lstm-adam": classify(runs.Recurrent, runs.sequences, "adam", 1e-2),
    "vae": lambda norm: (runs.Vae(norm, 2e-3), runs.gratings),
    "gan": lambda norm: (runs.Gan(norm, tagged=False), runs.gratings),
    "gan-tagged": lambda norm: (runs.Gan(norm, tagged=True), runs.gratings),
}
FAST = [
    ("cnn-sgd", "batch"),
    ("resnet-adamw", "group"),
    ("vit-adamw", "layer"),
    ("unet-adam", "none"),
    ("mlp-adam", "layer"),
    ("lstm-adam", "none"),
    ("vae", "batch"),
    ("gan-tagged", "none"),
]
ALL = [
    *[("cnn-sgd", norm) for norm in ("batch", "group", "layer_c", "none")],
    *[("cnn-adam", norm) for norm in ("batch", "group", "layer_c", "none")],
    *[("gelu-cnn-adamw", norm) for norm in ("batch", "group", "none")],
    *[("resnet-sgd", norm) for norm in ("batch", "group", "layer_c", "none")],
    *[("resnet-adamw", norm) for norm in ("batch", "group", "layer_c", "none")],
    *[("vit-adamw", norm) for norm in ("layer", "rms")],
    *[("unet-adam", norm) for norm in ("batch", "group", "layer_c", "none")],
    *[("unet-sgd", norm) for norm in ("batch", "group")],  # without norms it may not learn at all under SGD
    *[("unet-streams-adamw", norm) for norm in ("batch", "group")],
    *[("mlp-adam", norm) for norm in ("batch", "layer", "none")],
    *[("tanh-mlp-sgd", norm) for norm in ("batch", "layer", "none")],
    *[("regression-adam", norm) for norm in ("batch", "layer", "none")],
    *[("lstm-adam", norm) for norm in ("layer", "none")],
    *[("vae", norm) for norm in ("batch", "group", "none")],
    *[("gan", norm) for norm in ("batch", "group", "none")],
    *[("gan-tagged", norm) for norm in ("batch", "none")],
]


def run(kind: str, norm: str, seed: int, folder: Path, steps: int = STEPS) -> runs.Outcome:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module, data = HEALTHY[kind](norm)
        return runs.train(module, data, steps, folder)


def check(outcome: runs.Outcome, kind: str) -> None:
    assert outcome.learned < (0.9 if "gan" in kind else 0.5)
    assert "gan" in kind or outcome.leapt < 2, "no healthy run: its loss leapt"
    assert outcome.alarms["sentence"].tolist() == []


@pytest.mark.parametrize(("kind", "norm"), FAST)
def test_a_healthy_run_raises_no_alarm(kind: str, norm: str, tmp_path: Path) -> None:
    check(run(kind, norm, 0, tmp_path, FEW_STEPS), kind)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "norm"), ALL)
def test_no_healthy_run_raises_an_alarm(kind: str, norm: str, seed: int, tmp_path: Path) -> None:
    check(run(kind, norm, seed, tmp_path), kind)
