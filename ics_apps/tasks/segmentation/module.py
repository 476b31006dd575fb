"""The segmentation task: a net that labels every position, trained with Dice and cross-entropy, scored per case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from ics_apps.nets import UNet
from ics_apps.norms import NormConfig
from ics_apps.norms.registry import parse_norm
from ics_apps.tasks.base import Task, TaskError, not_plain
from ics_apps.tasks.segmentation.losses import DiceCELoss
from ics_apps.tasks.segmentation.metrics import HausdorffDistance95, OverlapScores
from ics_apps.tasks.segmentation.writer import MaskWriter, PanelWriter

SegmentationNet = Callable[[int, int, int, Any], nn.Module]
"""Makes a net from (in_channels, num_classes, dim, norm), which a recipe therefore cannot set at the net itself."""

FACTS_KEY = "segmentation_data"
_NO_CLASSES = (
    "the segmentation task does not know its classes: train it with a data module that has `class_names`, "
    "or load a checkpoint."
)


class DataFacts(TypedDict):
    """What the data decides about the net, kept in the checkpoint so that it can be used without the data."""

    dim: int
    in_channels: int
    class_names: list[str]
    mask_values: list[int]


class SegmentationTask(Task):
    """Train and evaluate a segmentation net with a chosen normalization.

    The number of channels, classes and space axes comes from the data module (or from the checkpoint), never from the
    recipe.

    Args:
        norm: The net's normalization: a name or `{name: group, num_groups: 8}`; see `ics-apps norms list`.
        net: Makes the net from (in_channels, num_classes, dim, norm); default `ics_apps.nets.UNet`.
        loss: Maps logits (B, K, *S) and class indices (B, *S) to a scalar; default `DiceCELoss()`.
        optimizer: Makes the optimizer.
        scheduler: Makes the schedule; see `Task`.

    Logs:
        `train/loss`; `val/loss`, `val/dice`, `val/iou`, and both per class (`val/dice/<class>`); the same for `test`
        with `test/hd95` besides.

    Raises:
        NormError: `norm` is not in the registry.
        TaskError: There is neither a data module nor a checkpoint that tells the classes.
    """

    def __init__(
        self,
        norm: NormConfig = "batch",
        net: SegmentationNet = UNet,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        parse_norm(norm)
        self.save_hyperparameters(ignore=not_plain("net", "loss", "optimizer", "scheduler"))
        self.norm = norm
        self.loss = loss or DiceCELoss()
        self.facts: DataFacts | None = None
        self._make_net: Any = net

    def setup(self, stage: str) -> None:
        """Read from the data module what decides the net."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and getattr(data, "class_names", None):
            self._agree_on(
                DataFacts(
                    dim=data.dim, in_channels=data.in_channels, class_names=list(data.class_names),
                    mask_values=list(data.mask_values),
                )
            )  # fmt: skip
        if self.facts is None and not self.trainer.ckpt_path:
            raise TaskError(_NO_CLASSES)

    def configure_model(self) -> None:
        """Build the net and the metrics, once; without the data's facts a checkpoint will bring them."""
        if self.facts is None or hasattr(self, "net"):
            return
        facts = self.facts
        self.net = self._make_net(facts["in_channels"], len(facts["class_names"]), facts["dim"], self.norm)
        self.val_overlap, self.test_overlap = (OverlapScores(facts["class_names"]) for _ in range(2))
        self.test_distance = HausdorffDistance95(facts["class_names"])

    def configure_callbacks(self) -> list[Callback]:
        """Write panels of tested cases, and masks of predicted ones."""
        return [PanelWriter(), MaskWriter()]

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, *S) of images (B, C, *S)."""
        if self.facts is None:
            raise TaskError(_NO_CLASSES)
        logits: Tensor = self.net(image)
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch of patches."""
        loss: Tensor = self.loss(self(batch["image"]), batch["mask"])
        self.log("train/loss", loss, on_step=True, on_epoch=False, batch_size=len(batch["mask"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Score whole cases."""
        logits = self.forward(batch["image"])
        prediction = logits.argmax(1)
        self._log_loss("val", logits, batch)
        self.val_overlap.update(prediction, batch["mask"])
        return prediction

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Score whole cases, with surface distances."""
        logits = self.forward(batch["image"])
        prediction = logits.argmax(1)
        self._log_loss("test", logits, batch)
        self.test_overlap.update(prediction, batch["mask"])
        self.test_distance.update(prediction, batch["mask"], batch["spacing"])
        return prediction

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Class indices (B, *S)."""
        return self.forward(batch["image"]).argmax(1)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all validation cases."""
        self._log_scores("val", self.val_overlap)

    def on_test_epoch_end(self) -> None:
        """Log the scores of all test cases."""
        self._log_scores("test", self.test_overlap, self.test_distance)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the data's facts with the weights."""
        checkpoint[FACTS_KEY] = self.facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the data's facts from the checkpoint, and build the net if no data module has."""
        facts: DataFacts | None = checkpoint.get(FACTS_KEY)
        if facts:
            self._agree_on(facts)
            self.configure_model()

    def _agree_on(self, facts: DataFacts) -> None:
        if self.facts is None:
            self.facts = facts
            return
        for key in ("dim", "in_channels", "class_names"):
            if self.facts[key] != facts[key]:
                raise TaskError(
                    f"the checkpoint and the data differ in {key}: {facts[key]!r} against {self.facts[key]!r}; "
                    "give data of the same kind, or start a new run with --init_from."
                )

    def _log_loss(self, stage: str, logits: Tensor, batch: dict[str, Any]) -> None:
        loss = self.loss(logits, batch["mask"])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["mask"]), sync_dist=True)

    def _log_scores(self, stage: str, *metrics: Metric) -> None:
        for metric in metrics:
            self.log_dict({f"{stage}/{name}": value.float() for name, value in metric.compute().items()})
            metric.reset()
