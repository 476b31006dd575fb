"""The schedule of re-estimation, and that training does not notice it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ics_apps.callbacks.recompute_statistics import RecomputeStatistics
from ics_apps.norms.statistics import recompute_statistics


class Plain(LightningModule):
    """Batch norm and dropout; its batches are tuples, or dicts with a key."""

    def __init__(self, key=None, norm=nn.BatchNorm1d):
        super().__init__()
        self.key = key
        self.net = nn.Sequential(nn.Linear(3, 4), norm(4), nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x = batch[0 if self.key is None else self.key]
        return self(x).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watched(Plain):
    """Notes the running mean of its norm at each validation."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.net[1].running_mean.clone())


class Counting(RecomputeStatistics):
    """Notes the (epoch, step) of each estimate and the number of its batches."""

    def __init__(self, **options):
        super().__init__(**options)
        self.turns = []

    def run_model(self, pl_module, batch):
        self.turns.append((pl_module.current_epoch, pl_module.global_step))
        super().run_model(pl_module, batch)


@pytest.fixture
def data():
    return TensorDataset(torch.randn(22, 3, generator=torch.Generator().manual_seed(0)) + 2)


def loader(data, **options):
    return DataLoader(data, **{"batch_size": 4, "shuffle": True, **options})


def make(kind=Plain, **options):
    torch.manual_seed(0)
    return kind(**options)


def fit(make_trainer, model, train, *callbacks, validation=None, **options):
    torch.manual_seed(1)
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, train, validation)
    return trainer


def test_validation_sees_the_exact_statistics_of_the_train_data(make_trainer, data):
    model = make(Watched)
    train = loader(data, shuffle=False)
    fit(make_trainer, model, train, RecomputeStatistics(), validation=loader(data, shuffle=False))
    exact = model.net[1].running_mean.clone()
    recompute_statistics(model, [x for (x,) in train], forward=lambda model, x: model(x))
    torch.testing.assert_close(exact, model.net[1].running_mean, rtol=0, atol=1e-6)
    assert torch.equal(model.seen[-1], exact)


def test_they_are_saved_in_the_checkpoints(make_trainer, data, tmp_path):
    model = make()
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(make_trainer, model, loader(data), saver, RecomputeStatistics(), enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["net.1.running_mean"], model.net[1].running_mean)
    moving = make()
    fit(make_trainer, moving, loader(data))
    assert not torch.equal(moving.net[1].running_mean, model.net[1].running_mean)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}])
@pytest.mark.parametrize("seed", [3, None])
def test_training_is_the_same_to_the_bit(make_trainer, data, validated, workers, seed):
    def run(*callbacks):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        model = make(Watched if validated else Plain)
        train = loader(data, generator=generator, **workers)
        # Two validations an epoch: the second iteration over the train loader begins while the first is under way.
        options = {"validation": loader(data, shuffle=False), "val_check_interval": 3} if validated else {}
        fit(make_trainer, model, train, *callbacks, **options)
        return {name: value for name, value in model.state_dict().items() if "running" not in name}

    plain, watched = run(), run(RecomputeStatistics())
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())


def test_it_runs_at_each_validation_of_a_fit_and_at_no_other(make_trainer, data):
    counting = Counting(max_batches=2)
    validation = loader(data, shuffle=False)
    trainer = fit(make_trainer, make(Watched), loader(data), counting, validation=validation, val_check_interval=3)
    assert counting.turns == [(0, 3), (0, 3), (0, 6), (0, 6), (1, 9), (1, 9), (1, 12), (1, 12)]
    trainer.validate(make(Watched), validation)
    assert len(counting.turns) == 8


def test_without_validation_it_runs_at_the_end_of_each_epoch(make_trainer, data):
    counting = Counting(max_batches=1)
    fit(make_trainer, make(), loader(data), counting)
    assert counting.turns == [(0, 6), (1, 12)]


def test_every_n_epochs_includes_the_last(make_trainer, data):
    counting = Counting(max_batches=1, every_n_epochs=2)
    fit(make_trainer, make(), loader(data), counting, max_epochs=5)
    assert [epoch for epoch, _ in counting.turns] == [1, 3, 4]
    stopped = Counting(max_batches=1, every_n_epochs=10)
    fit(make_trainer, make(), loader(data), stopped, max_epochs=-1, max_steps=8)
    assert [step for _, step in stopped.turns] == [8]


def test_a_second_fit_estimates_again(make_trainer, data):
    counting = Counting(max_batches=1)
    for _ in range(2):
        fit(make_trainer, make(), loader(data), counting, max_epochs=1)
    assert len(counting.turns) == 2


def test_a_dict_needs_the_key_of_its_input(make_trainer, data):
    rows = [{"image": x, "label": 0} for (x,) in data]
    callback = RecomputeStatistics(input_key="image")
    fit(make_trainer, make(key="image"), loader(rows), callback, max_epochs=1)
    assert callback.report.values == {"net.1": 22}
    message = r"input_key is 'img'; the train loader's batches are dicts with the keys 'image', 'label'\."
    with pytest.raises(ValueError, match=message):
        fit(make_trainer, make(key="image"), loader(rows), RecomputeStatistics(input_key="img"))
    with pytest.raises(ValueError, match="got a list where the model's input should be; set input_key, or override"):
        RecomputeStatistics().run_model(make(), [[1]])


def test_a_model_without_running_statistics_is_left_alone(make_trainer, data):
    counting = Counting()
    fit(make_trainer, make(norm=nn.LayerNorm), loader(data), counting)
    assert counting.turns == []
    assert counting.report.batches == 0


def test_several_train_loaders_are_refused(make_trainer, data):
    model = make()
    model.training_step = lambda batch, batch_idx: model(batch["a"][0]).mean()
    with pytest.raises(ValueError, match="takes its batches from one train loader, but there are 2"):
        fit(make_trainer, model, {"a": loader(data), "b": loader(data)}, RecomputeStatistics())


@pytest.mark.parametrize("name", ["max_batches", "every_n_epochs"])
def test_a_number_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; give at least 1"):
        RecomputeStatistics(**{name: 0})


def test_strangers_train_with_it_as_without(make_trainer, batches, strangers):
    """Batches that are tensors; in-place activations, shared layers, checkpointing and two optimizers."""
    for name in ("classifier", "checkpointed", "shared"):

        def run(*callbacks, kind=strangers[name]):
            torch.manual_seed(0)
            model = kind()
            make_trainer(*callbacks).fit(model, batches)
            return {key: value for key, value in model.state_dict().items() if "running" not in key}

        plain, watched = run(), run(RecomputeStatistics())
        assert all(torch.equal(value, watched[key]) for key, value in plain.items()), name


def test_no_file_is_written(make_trainer, data, tmp_path):
    fit(make_trainer, make(), loader(data), RecomputeStatistics())
    assert list(Path(tmp_path).iterdir()) == []
