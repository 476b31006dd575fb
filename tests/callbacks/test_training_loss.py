"""The loss that a probe differentiates is the one that is trained on, and calling it has no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ics_apps.callbacks.training_loss import training_loss
from ics_apps.probes.preserve import ProbeError
from tests.callbacks.conftest import Adversarial, Classifier

X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Losses(Callback):
    """At every step: the loss called twice by hand, and the one that Lightning found."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.by_hand: list[tuple[float, float]] = []
        self.trained: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with torch.random.fork_rng():
            loss = training_loss(trainer, pl_module, batch, batch_idx, self.name)
            first = loss().item()
            self.by_hand.append((first, loss().item()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained.append(outputs["loss"].item())


class Plain(Classifier):
    """Without dropout or buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True))


class WithoutNumber(Plain):
    def training_step(self, batch: Tensor) -> Tensor:  # type: ignore[override]
        return self(batch).square().mean()


class OtherNumber(Plain):
    def training_step(self, batch: Tensor, number: int) -> Tensor:  # type: ignore[override]
        return self(batch).square().mean() * (number + 1)


class InADict(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": self(batch).square().mean()}


class InPlace(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch.mul_(2)
        return self(batch).square().mean()


class Logging(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self(batch).square().mean()
        self.log("loss", loss, on_step=True)
        self.log_dict({"twice": 2 * loss})
        return loss


@pytest.mark.parametrize("kind", [Plain, WithoutNumber, OtherNumber, InADict, InPlace, Logging])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_is_the_loss_that_training_uses(
    kind: type[LightningModule], precision: str, make_trainer: Callable[..., Trainer], batches: Any
) -> None:
    losses = Losses()
    make_trainer(losses, precision=precision, max_epochs=1).fit(kind(), batches)
    assert len(losses.trained) == 12
    assert losses.by_hand == [(loss, loss) for loss in losses.trained]


def test_what_the_step_logs_inside_goes_nowhere(make_trainer: Callable[..., Trainer], batches: Any) -> None:
    seen: list[set[str]] = []

    class Watching(Losses):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            before = dict(trainer.callback_metrics)
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            seen.append(set(trainer.callback_metrics) - set(before))

    trainer = make_trainer(Watching(), max_epochs=1)
    module = Logging()
    trainer.fit(module, batches)
    assert seen == [set()] * 12
    assert {"loss", "twice"} <= set(trainer.callback_metrics)
    assert not {"log", "log_dict", "log_grad_norm"} & set(vars(module))


def test_a_modules_own_log_is_put_back(make_trainer: Callable[..., Trainer]) -> None:
    module, calls = Logging(), []
    module.log = lambda *args, **_: calls.append(args)  # type: ignore[method-assign, assignment]
    own = module.log
    training_loss(make_trainer(), module, X, 0)()
    assert module.log is own
    assert calls == []


def test_a_probe_loss_goes_before_the_training_step(make_trainer: Callable[..., Trainer]) -> None:
    class Probed(Adversarial):
        def probe_loss(self, batch: Tensor) -> Tensor:
            return self.d(batch.flatten(1)).mean()

        def other(self, batch: Tensor) -> Tensor:
            return 2 * self.d(batch.flatten(1)).mean()

    module = Probed().eval()
    loss = training_loss(make_trainer(), module, X, 0)()
    assert loss.item() == module.probe_loss(X).item()
    assert training_loss(make_trainer(), module, X, 0, "other")().item() == 2 * loss.item()


def test_a_batch_of_any_structure_is_kept(make_trainer: Callable[..., Trainer]) -> None:
    class Popping(Plain):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # type: ignore[override]
            x, (scale, name) = batch.pop("x"), batch["rest"]
            scale += 1
            assert name == "cat"
            return self(x).square().mean() * scale

    batch = {"x": X.clone(), "rest": [torch.ones(()), "cat"]}
    loss = training_loss(make_trainer(), Popping(), batch, 0)
    assert loss().item() == loss().item()
    assert torch.equal(batch["x"], X)  # type: ignore[arg-type]
    assert batch["rest"][0] == 1


class Fetching(Plain):
    def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:  # type: ignore[override]
        return self(next(dataloader_iter)[0]).mean()


class LossLess(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        return {"y": self(batch)}


def test_steps_that_are_no_function_of_the_weights_are_refused(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    with pytest.raises(ProbeError, match=r"steps its optimizers by hand.*probe_loss\(batch\)"):
        training_loss(trainer, Adversarial(), X, 0)
    with pytest.raises(ProbeError, match="fetches its batches itself"):
        training_loss(trainer, Fetching(), X, 0)
    with pytest.raises(ProbeError, match="has no method 'missing'"):
        training_loss(trainer, Plain(), X, 0, "missing")
    with pytest.raises(ProbeError, match="a dict with the keys 'y'; add the scalar loss"):
        training_loss(trainer, LossLess(), X, 0)()
