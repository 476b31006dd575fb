"""What is fixed does not move, and moves again when it is set free."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from ics_apps.callbacks.freeze_layers import FreezeLayers


class Plain(LightningModule):
    """Two stages, the first with batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.encoder(batch)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.head(self.encoder(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


class Late(Plain):
    """Its net is built when the Trainer asks for it."""

    def __init__(self):
        LightningModule.__init__(self)

    def configure_model(self):
        if not hasattr(self, "head"):
            built = Plain()
            self.encoder, self.head = built.encoder, built.head


class Notes(Callback):
    """Notes in each step which modules train, and the epochs."""

    def __init__(self):
        self.training = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        names = [name for name, module in pl_module.named_modules() if module.training]
        self.training.append((trainer.current_epoch, names))


@pytest.fixture
def batches():
    return DataLoader(torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0)) + 2, batch_size=None)


def fit(make_trainer, model, batches, *callbacks, **options):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_trainer(*callbacks, **options).fit(model, batches, batches)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


HEAD = {"head.weight", "head.bias"}


def test_a_frozen_part_keeps_weights_and_running_statistics(make_trainer, batches):
    moved = fit(make_trainer, Plain(), batches, FreezeLayers(["encoder.*"]))
    assert moved == HEAD


def test_without_it_all_of_them_move(make_trainer, batches):
    model = Plain()
    assert fit(make_trainer, model, batches) == set(model.state_dict())


def test_a_frozen_part_runs_in_evaluation_mode_after_validations_too(make_trainer, batches):
    notes = Notes()
    fit(make_trainer, Plain(), batches, notes, FreezeLayers(["encoder"]), val_check_interval=5)
    assert {tuple(names) for _, names in notes.training} == {("", "head")}


def test_a_net_built_late_is_frozen_too(make_trainer, batches):
    model, callback = Late(), FreezeLayers(["encoder.*"])
    make_trainer(callback, max_epochs=1).fit(model, batches, batches)
    assert callback.parameters == [f"encoder.{name}" for name, _ in model.encoder.named_parameters()]
    assert callback.modules == [f"encoder.{i}" for i in range(4)]


def test_a_pattern_for_parameters_leaves_the_modes_alone(make_trainer, batches):
    callback = FreezeLayers(["*.bias"])
    moved = fit(make_trainer, Plain(), batches, callback)
    assert callback.modules == []
    assert {name for name in moved if name.endswith("bias")} == set()
    assert "encoder.1.running_mean" in moved
    assert "encoder.0.weight" in moved


def test_at_the_epoch_given_all_is_free(make_trainer, batches):
    notes, model = Notes(), Plain()
    moved = fit(make_trainer, model, batches, notes, FreezeLayers(["encoder.*"], unfreeze_at_epoch=1), max_epochs=2)
    assert moved == set(model.state_dict())
    per_epoch = dict(notes.training)
    assert "encoder.1" not in per_epoch[0]
    assert {"encoder.1", "encoder.2"} <= set(per_epoch[1])


def test_a_run_continued_behind_that_epoch_is_free_from_its_start(make_trainer, batches, tmp_path):
    first = make_trainer(FreezeLayers(["encoder.*"], unfreeze_at_epoch=1), max_epochs=2)
    first.fit(Plain(), batches, batches)
    first.save_checkpoint(tmp_path / "two.ckpt")
    notes = Notes()
    callbacks = (notes, FreezeLayers(["encoder.*"], unfreeze_at_epoch=1))
    again = make_trainer(*callbacks, max_epochs=3)
    again.fit(Plain(), batches, batches, ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert {epoch for epoch, _ in notes.training} == {2}
    assert all("encoder.1" in names for _, names in notes.training)


def test_after_fit_the_model_is_as_free_as_before(make_trainer, batches):
    model = Plain()
    model.encoder[0].weight.requires_grad_(False)
    fit(make_trainer, model, batches, FreezeLayers(["encoder.*"]))
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["encoder.0.weight"]
    assert model.encoder[1].training


def test_a_second_fit_freezes_again(make_trainer, batches):
    model, callback = Plain(), FreezeLayers(["encoder.*"])
    for _ in range(2):
        assert fit(make_trainer, model, batches, callback) == HEAD


def test_what_was_frozen_is_said(make_trainer, batches, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(make_trainer, Plain(), batches, FreezeLayers(["encoder"], unfreeze_at_epoch=1), max_epochs=2)
    text = caplog.text
    assert "holds encoder until epoch 1: 6 of 8 parameters (44 of 49 values), 5 modules." in text
    assert "sets all free at epoch 1." in text


def test_a_pattern_that_matches_nothing_is_told_with_the_nearest_name(make_trainer, batches):
    with pytest.raises(ValueError, match=r"'encodr\.\*' matches no module and no parameter; did you mean 'encoder'\?"):
        fit(make_trainer, Plain(), batches, FreezeLayers(["head", "encodr.*"]))


def test_patterns_that_leave_nothing_to_train_are_refused(make_trainer, batches):
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        fit(make_trainer, Plain(), batches, FreezeLayers(["*"]))


def test_several_processes_need_a_strategy_that_allows_for_unused_parameters(make_trainer, batches):
    class Two:
        world_size = 2
        strategy = object()

    with pytest.raises(ValueError, match=r"on 2 processes needs trainer\.strategy ddp_find_unused_parameters_true"):
        FreezeLayers(["encoder"]).on_fit_start(Two(), Plain())


@pytest.mark.parametrize("freeze", [[], "encoder.*"])
def test_patterns_are_a_list_with_something_in_it(freeze):
    with pytest.raises(ValueError, match="give a list of names or patterns"):
        FreezeLayers(freeze)


def test_strangers_train_with_it(make_trainer, strangers):
    images = DataLoader(torch.randn(4, 4, 1, 6, 6), batch_size=None)
    for name in ("classifier", "checkpointed", "shared"):
        model = strangers[name]()
        before = model.body[0].weight.clone()
        make_trainer(FreezeLayers(["body"])).fit(model, images)
        assert torch.equal(model.body[0].weight, before), name
