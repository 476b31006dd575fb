from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ics_apps.callbacks import AutoPrecision
from ics_apps.callbacks.auto_precision import Choice, bf16_is_native


class ConvNet(LightningModule):
    """A stranger's module: batch norm (buffers), dropout (random draws) and logging."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
        self.dtypes: list[torch.dtype] = []

    def training_step(self, batch: Any, _index: int) -> Tensor:
        output: Tensor = self.body(batch[0])
        self.dtypes.append(output.dtype)
        loss = output.float().pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def fit(module: LightningModule, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    data = TensorDataset(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, log_every_n_steps=1,
                      enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
                      callbacks=list(callbacks), **options)  # fmt: skip
    torch.manual_seed(7)
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True))
    return trainer


def test_training_with_the_probe_equals_training_with_the_chosen_layout_set_by_hand(tmp_path: Path) -> None:
    probed, by_hand = ConvNet(), ConvNet()
    auto = AutoPrecision(candidates=("fp32",))
    fit(probed, tmp_path / "a", auto)
    assert auto.choice is not None
    assert len(auto.seconds) == 2
    if auto.choice.memory_format == "channels_last":
        by_hand = by_hand.to(memory_format=torch.channels_last)
    fit(by_hand, tmp_path / "b")
    for name, tensor in by_hand.state_dict().items():
        assert torch.equal(probed.state_dict()[name], tensor), f"{name} was changed by timing the steps"


def test_the_choice_is_printed_kept_and_taken_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = AutoPrecision(candidates=("fp32",))
    fit(ConvNet(), tmp_path, first)
    assert first.choice is not None
    assert json.loads((tmp_path / "precision.json").read_text()) == {
        "precision": "fp32", "memory_format": first.choice.memory_format,
    }  # fmt: skip
    assert f"precision: fp32 {first.choice.memory_format} (a step: " in capsys.readouterr().out
    again = AutoPrecision(candidates=("fp32",))
    fit(ConvNet(), tmp_path, again)
    assert again.choice == first.choice
    assert again.seconds == {}, "a resumed run timed the steps again"
    assert "as this run began" in capsys.readouterr().out


def test_bf16_is_applied_in_training_and_taken_away_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ics_apps.callbacks.auto_precision.bf16_is_native", lambda _device: True)
    auto = AutoPrecision(candidates=("bf16",))
    module = ConvNet()
    trainer = fit(module, tmp_path, auto)
    assert auto.choice is not None
    assert auto.choice.precision == "bf16"
    assert module.dtypes[-1] == torch.bfloat16
    assert trainer.precision == "32-true", "test and predict after fit would run in bf16"


def test_bf16_is_not_tried_without_instructions_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ics_apps.callbacks.auto_precision.bf16_is_native", lambda _device: False)
    auto = AutoPrecision()
    fit(ConvNet(), tmp_path, auto)
    assert {choice.precision for choice in auto.seconds} == {"fp32"}


def test_a_precision_set_by_hand_is_left_alone(tmp_path: Path) -> None:
    auto = AutoPrecision()
    fit(ConvNet(), tmp_path, auto, precision="bf16-mixed")
    assert auto.choice is None


def test_a_module_without_convolutions_has_one_layout(tmp_path: Path) -> None:
    module = ConvNet()
    module.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    auto = AutoPrecision(candidates=("fp32",))
    fit(module, tmp_path, auto)
    assert auto.choice == Choice("fp32", "contiguous")


def test_unknown_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed are 'fp32' and 'bf16'"):
        AutoPrecision(candidates=("fp16",))  # type: ignore[arg-type]


def test_the_callback_can_be_copied_with_its_choice() -> None:
    auto = AutoPrecision()
    auto.choice = Choice("fp32", "contiguous")
    assert copy.deepcopy(auto).choice == auto.choice


def test_the_answer_about_the_processor_is_a_plain_bool() -> None:
    assert bf16_is_native(torch.device("cpu")) in (True, False)
    assert bf16_is_native(torch.device("meta")) is False
