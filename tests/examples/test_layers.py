"""Layers that return more than one tensor, run once a time step, or do not learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.utils import ModelOutput

from tests.examples.kept import Kept, rms

Fit = Callable[..., pd.DataFrame]
STEPS = 7


class Learner(LightningModule):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self(batch) - batch.mean((1, 2))[:, None]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


class Sequences(Learner):
    """An LSTM in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


class StepByStep(Learner):
    """An LSTM cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        y: Tensor = self.head(state[0])
        return y


@dataclass
class Encoded(ModelOutput):  # type: ignore[misc]
    length: Tensor | None = None
    hidden: Tensor | None = None


class Encoder(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.sin(self.layer(x)).mean(1)
        length = torch.full((len(x),), x.shape[1])  # no floating-point tensor: what follows it is read
        kinds = {
            "dict": {"length": length, "hidden": hidden},
            "tuple": (length, {"hidden": hidden}),
            "ModelOutput": Encoded(length=length, hidden=hidden),
        }
        return kinds[self.kind]


class Encodes(Learner):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(kind), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.encoder(x)
        self.hidden = (out[1] if isinstance(out, tuple) else out)["hidden"]
        y: Tensor = self.head(self.hidden)
        return y


class FineTuned(Learner):
    """Only the head learns."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * STEPS, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(8, 1)

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(x))
        return y


@pytest.fixture
def data() -> DataLoader[Tensor]:
    seed_everything(0, verbose=False)
    return DataLoader(torch.randn(4, 5, STEPS, 3), batch_size=None)  # type: ignore[arg-type]


def test_an_lstms_outputs_over_all_time_steps_are_one_row(fit: Fit, data: Any) -> None:
    model = Sequences()
    kept = Kept(model.rnn)
    rows = fit(model, data)
    rnn = rows[rows["layer"] == "rnn"]
    assert rnn["kind"].tolist() == ["recurrent"] * 4
    assert rnn["count"].tolist() == [5 * STEPS * 6] * 4
    assert rnn["rms"].tolist() == pytest.approx([rms(x) for x in kept.outputs], rel=1e-6)
    assert rnn["grad_rms"].tolist() == pytest.approx([rms(x) for x in kept.gradients], rel=1e-6)


def test_the_time_steps_of_a_cell_are_pooled(fit: Fit, data: Any) -> None:
    model = StepByStep()
    kept = Kept(model.cell)
    rows = fit(model, data)
    cell = rows[rows["layer"] == "cell"]
    assert cell["call"].tolist() == [0] * 4
    assert cell["count"].tolist() == [5 * STEPS * 6] * 4
    by_batch = [slice(first, first + STEPS) for first in range(0, 4 * STEPS, STEPS)]
    assert cell["rms"].tolist() == pytest.approx([rms(kept.outputs[each]) for each in by_batch], rel=1e-6)
    assert cell["grad_rms"].tolist() == pytest.approx([rms(kept.gradients[each]) for each in by_batch], rel=1e-6)


@pytest.mark.parametrize("kind", ["dict", "tuple", "ModelOutput"])
def test_of_several_outputs_the_first_floating_point_tensor_is_read(kind: str, fit: Fit, data: Any) -> None:
    model = Encodes(kind)
    hidden: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, args: hidden.append(args[0].detach().clone()))
    weights: list[Tensor] = []
    model.head.register_forward_hook(lambda module, args, y: weights.append(module.weight.detach().clone()))
    head = Kept(model.head)
    rows = fit(model, data, monitor={"layers": ["encoder"]})
    assert rows["layer"].tolist() == ["encoder"] * 4
    assert rows["rms"].tolist() == pytest.approx([rms(x) for x in hidden], rel=1e-6)
    # The head is linear: d loss / d hidden = d loss / d y * w.
    expected = [rms(g @ w) for g, w in zip(head.gradients, weights, strict=True)]
    assert rows["grad_rms"].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_frozen_backbone_has_no_gradients_and_no_updates(fit: Fit, data: Any) -> None:
    model = FineTuned()
    frozen, head = Kept(model.backbone[3]), Kept(model.head)
    outputs: list[Tensor] = []
    model.backbone[3].register_forward_hook(lambda module, args, y: outputs.append(y.detach().clone()))
    rows = fit(model, data, max_epochs=30)  # long enough for the rules that wait for 100 steps
    assert frozen.gradients == []
    of_backbone = rows[rows["layer"].str.startswith("backbone")]
    assert of_backbone["grad_rms"].isna().all()
    assert set(of_backbone["update_ratio"].dropna()) == {0}
    assert of_backbone["running_gap"].isna().all()  # in evaluation mode it moves none
    assert rows[rows["layer"] == "backbone.3"]["rms"].tolist() == pytest.approx([rms(x) for x in outputs], rel=1e-6)
    of_head = rows[rows["layer"] == "head"]
    assert of_head["grad_rms"].tolist() == pytest.approx([rms(x) for x in head.gradients], rel=1e-6)
    assert (of_head["update_ratio"] > 0).all()
