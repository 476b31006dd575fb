"""One line in the projects of others: Lightning's own demo, timm, transformers, scvi-tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from ics_apps.callbacks import ActivationMonitor
from tests.examples.kept import Kept, rms

Fit = Callable[..., pd.DataFrame]


class TimmClassifier(LightningModule):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.net = timm.create_model(name, num_classes=3, **options)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        labels = torch.arange(len(batch)) % 3
        return nn.functional.cross_entropy(self.net(batch), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class TextClassifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        self.net = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=8, **sizes))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(input_ids=batch, labels=batch[:, 0] % 2).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_lightnings_boring_model(trainer_with: Callable[..., Trainer], table: Fit) -> None:
    model = BoringModel()
    kept = Kept(model.layer)
    before = model.layer.weight.detach().clone()
    trainer_with(ActivationMonitor(), limit_val_batches=0).fit(model)
    rows = table()
    assert rows["step"].tolist() == [0, 30, 60]
    assert rows["layer"].tolist() == ["layer"] * 3
    outputs = [kept.outputs[step] for step in rows["step"]]
    assert rows["rms"].tolist() == pytest.approx([rms(x) for x in outputs], rel=1e-6)
    # Its loss is the mean squared distance from 1 of one sample's two outputs.
    assert rows["grad_rms"].tolist() == pytest.approx([rms(x - 1) for x in outputs], rel=1e-5)
    assert rows["weight_norm"][0] == pytest.approx(float(before.norm()), rel=1e-6)


def test_a_cnn_of_timm(fit: Fit) -> None:
    model = TimmClassifier("resnet18")
    first, last = Kept(model.net.conv1), Kept(model.net.fc)
    images = torch.randn(2, 8, 3, 32, 32)
    rows = fit(model, DataLoader(images, batch_size=None), monitor={"on_alarm": "log"})  # type: ignore[arg-type]
    assert len(rows) == 2 * 58  # 20 norms, 20 convolutions, 17 calls of activations, a linear layer
    assert rows[rows["kind"] == "norm"]["running_gap"].notna().all()
    of_first, of_last = (rows[rows["layer"] == name] for name in ("net.conv1", "net.fc"))
    assert of_last["rms"].tolist() == pytest.approx([rms(x) for x in last.outputs], rel=1e-6)
    assert of_last["grad_rms"].tolist() == pytest.approx([rms(x) for x in last.gradients], rel=1e-6)
    # More than the sample can hold: estimated.
    assert of_first["numel"].tolist() == [8 * 64 * 16 * 16] * 2
    assert of_first["rms"].tolist() == pytest.approx([rms(x) for x in first.outputs], rel=0.02)
    # Only the direction of a weight counts where a norm follows.
    assert of_first["effective_lr"].notna().all()
    assert of_last["effective_lr"].isna().all()


def test_a_vision_transformer_of_timm(fit: Fit) -> None:
    model = TimmClassifier("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2)
    kept = Kept(model.net.blocks[1].mlp.act)
    rows = fit(model, DataLoader(torch.randn(2, 4, 3, 16, 16), batch_size=None))  # type: ignore[arg-type]
    act = rows[rows["layer"] == "net.blocks.1.mlp.act"]
    assert act["type"].tolist() == ["GELU"] * 2
    assert act["rms"].tolist() == pytest.approx([rms(x) for x in kept.outputs], rel=1e-6)
    assert act["grad_rms"].tolist() == pytest.approx([rms(x) for x in kept.gradients], rel=1e-6)


def test_a_bert_of_transformers(fit: Fit) -> None:
    seed_everything(0, verbose=False)
    model = TextClassifier()
    bert = model.net.bert
    watched = {"net.bert.embeddings.LayerNorm": bert.embeddings.LayerNorm, "net.classifier": model.net.classifier}
    kept = {name: Kept(module) for name, module in watched.items()}
    rows = fit(model, DataLoader(torch.randint(0, 50, (3, 4, 8)), batch_size=None))  # type: ignore[arg-type]
    assert rows["step"].nunique() == 3
    for name, one in kept.items():
        of_layer = rows[rows["layer"] == name]
        assert of_layer["rms"].tolist() == pytest.approx([rms(x) for x in one.outputs], rel=1e-6)
        assert of_layer["grad_rms"].tolist() == pytest.approx([rms(x) for x in one.gradients], rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_training_plan_of_scvi_tools(tmp_path: Path) -> None:
    scvi = pytest.importorskip("scvi", exc_type=ImportError)
    import anndata

    counts = np.random.default_rng(0).poisson(2.0, (64, 30)).astype(np.float32)
    cells = anndata.AnnData(counts)
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, n_hidden=8, n_latent=2)
    means = Kept(model.module.z_encoder.mean_encoder)
    monitor = ActivationMonitor(1, dirpath=tmp_path / "monitor", on_alarm="log")
    options = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    model.train(max_epochs=2, train_size=0.5, batch_size=16, callbacks=[monitor], **options)
    rows = pd.read_parquet(tmp_path / "monitor").sort_values("step")
    of_means = rows[rows["layer"] == "module.z_encoder.mean_encoder"]
    assert of_means["step"].tolist() == [0, 1, 2, 3]
    assert of_means["rms"].tolist() == pytest.approx([rms(x) for x in means.outputs], rel=1e-6)
    assert (rows["kind"] == "norm").any()
    assert of_means["grad_rms"].tolist() == pytest.approx([rms(x) for x in means.gradients], rel=1e-6)
