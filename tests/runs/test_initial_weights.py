"""What is told about the weights that a run starts from."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from ics_apps.nets import UNet
from ics_apps.runs.checkpoints import CheckpointError
from ics_apps.runs.initial_weights import InitialWeights


class Task(LightningModule):
    """A net, and a training step that changes nothing."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return 0 * self.net(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def start(tmp_path):
    def fit(net, weights):
        torch.save(weights, tmp_path / "weights.pt")
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[InitialWeights(tmp_path / "weights.pt")],
        )  # fmt: skip
        images = torch.zeros(1, 2, net.encoder[0].conv1.in_channels, 8, 8)
        trainer.fit(Task(net), DataLoader(images, batch_size=None))

    return fit


def small(in_channels=1, classes=2):
    return UNet(in_channels, classes, norm="group", width=8, depth=1)


def test_the_weights_are_there_and_all_that_was_not_plain_is_told(start, capsys):
    given = small(3, 5).state_dict() | {"extra.bias": torch.zeros(1)}
    net = small()
    start(net, given)
    assert torch.equal(net.bottleneck.conv1.weight, given["bottleneck.conv1.weight"])
    told = capsys.readouterr().out
    total = len(net.state_dict())
    assert f"{total - 2} of {total} tensors; (no prefix) there is net. here; " in told
    assert "net.encoder.0.conv1.weight is the mean of 3 input channels for 1; " in told
    assert "kept as initialised: net.head.bias, net.head.weight; " in told
    assert "net.head.weight (5, 8, 1, 1) there, (2, 8, 1, 1) here" in told
    assert told.endswith("not used: extra.bias\n")


def test_weights_of_which_nothing_fits_are_refused_with_names_of_both(start):
    with pytest.raises(CheckpointError, match=r"the file begins with a\.weight, the model with net\.encoder\.0"):
        start(small(), {"a.weight": torch.zeros(3)})
