"""A model that was given to `torch.compile` before it was given to the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader

from ics_apps.callbacks import ActivationMonitor
from tests.examples.kept import ALL

Fit = Callable[..., pd.DataFrame]
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


class Compact(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self(batch) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def data() -> DataLoader[Tensor]:
    images = torch.randn(6, 8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(images, batch_size=None)  # type: ignore[arg-type]


def train(fit: Fit, data: Any, backend: Any) -> pd.DataFrame:
    seed_everything(0, verbose=False)
    module = Compact()
    return fit(module if backend is None else torch.compile(module, backend=backend), data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_of_a_compiled_module_is_that_of_the_same_module_uncompiled(
    backend: str, fit: Fit, data: Any
) -> None:
    plain, compiled = train(fit, data, None), train(fit, data, backend)
    assert len(plain) == 6 * 4
    for name in plain.columns.drop("histogram"):
        if pd.api.types.is_float_dtype(plain[name]):
            assert compiled[name].tolist() == pytest.approx(plain[name].tolist(), rel=1e-4, abs=1e-5, nan_ok=True), name
        else:
            assert compiled[name].tolist() == plain[name].tolist(), name
    assert compiled["grad_rms"].notna().all()


def test_the_net_stays_one_graph_with_one_more_for_sampled_steps(trainer_with: Callable[..., Trainer],
                                                                table: Fit, data: Any) -> None:  # fmt: skip
    seed_everything(0, verbose=False)
    module = Compact()
    counter = CompileCounterWithBackend("eager")
    module.net.compile(backend=counter, fullgraph=True)
    trainer_with(ActivationMonitor(every_n_steps=3, sample_size=ALL), max_epochs=2).fit(module, data)
    assert counter.frame_count == 2
    assert table()["step"].unique().tolist() == [0, 3, 6, 9]


def test_a_model_that_was_compiled_before_it_is_watched_is_told_of_not_passed_over(
    trainer_with: Callable[..., Trainer], table: Fit, data: Any
) -> None:
    trainer_with().fit(torch.compile(Compact(), backend="eager"), data)
    again = torch.compile(Compact(), backend="eager")
    with pytest.warns(UserWarning, match=r"4 layers .*reported nothing .* call torch\.compiler\.reset\(\)"):
        trainer_with(ActivationMonitor(every_n_steps=1)).fit(again, data)
    torch.compiler.reset()
    trainer_with(ActivationMonitor(every_n_steps=1)).fit(torch.compile(Compact(), backend="eager"), data)
    assert len(table()) == 6 * 4


def test_a_compiled_model_may_be_validated_before_it_is_watched(
    trainer_with: Callable[..., Trainer], table: Fit, data: Any
) -> None:
    class Validated(Compact):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self(batch)

    model = torch.compile(Validated(), backend="eager")
    trainer = trainer_with(ActivationMonitor(every_n_steps=1))
    trainer.validate(model, data, verbose=False)
    trainer.fit(model, data, data)
    assert len(table()) == 6 * 4
