"""The segmentation task: a net that labels every position of an image, trained on patches, scored per case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypedDict

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from ics_apps.nets import UNet
from ics_apps.norms import NormConfig
from ics_apps.norms.registry import parse_norm
from ics_apps.runs.layout import CASES, CASES_SUMMARY
from ics_apps.tasks.base import Task, TaskError, not_plain
from ics_apps.tasks.segmentation.data.grid import restore
from ics_apps.tasks.segmentation.inference import InferenceOptions, Prediction, Predictor
from ics_apps.tasks.segmentation.losses import DiceCELoss
from ics_apps.tasks.segmentation.metrics import CaseScores, OverlapScores
from ics_apps.tasks.segmentation.writer import MaskWriter, PanelWriter

SegmentationNet = Callable[[int, int, int, Any], nn.Module]
"""Makes a net from (in_channels, num_classes, dim, norm), which a recipe therefore cannot set at the net itself."""

FACTS_KEY = "segmentation_data"
_WHOLE_IMAGE: Final = InferenceOptions()
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
    multi_label: bool


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
        inference: How whole cases are predicted: windows, tiles, symmetries, members, what is written; default in one
            pass. Validation uses its windows only.

    Logs:
        `train/loss`; `val/loss`, `val/dice`, `val/iou`, and both per class (`val/dice/<class>`); of the test cases
        `test/loss` and all of `CaseScores`: overlap, surface distances and calibration, means and 95 % intervals over
        cases.

    Writes:
        Of the test cases `cases.csv`, one row a case and class, and `cases_summary.csv`.

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
        inference: InferenceOptions = _WHOLE_IMAGE,
    ) -> None:
        super().__init__(optimizer, scheduler)
        parse_norm(norm)
        self.save_hyperparameters(ignore=not_plain("net", "loss", "optimizer", "scheduler", "inference"))
        self.norm = norm
        self.loss = loss or DiceCELoss()
        self.inference = inference
        self.facts: DataFacts | None = None
        self._make_net: Any = net

    def setup(self, stage: str) -> None:
        """Read from the data module what decides the net."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and getattr(data, "class_names", None):
            self._agree_on(
                DataFacts(
                    dim=data.dim, in_channels=data.in_channels, class_names=list(data.class_names),
                    mask_values=list(data.mask_values), multi_label=bool(getattr(data, "multi_label", False)),
                )
            )  # fmt: skip
        if self.facts is None and not self.trainer.ckpt_path:
            raise TaskError(_NO_CLASSES)

    def configure_model(self) -> None:
        """Build the net and the metrics, once; without the data's facts a checkpoint will bring them."""
        if self.facts is None or hasattr(self, "predictor"):
            return
        facts = self.facts
        if not hasattr(self, "net"):  # an exported one may stand in
            self.net = self._make_net(facts["in_channels"], len(facts["class_names"]), facts["dim"], self.norm)
        several = facts["multi_label"]
        self.predictor = Predictor(self.net, self.inference, multi_label=several)
        self.val_overlap = OverlapScores(facts["class_names"], multi_label=several)
        self.test_scores = CaseScores(facts["class_names"], multi_label=several)

    def configure_callbacks(self) -> list[Callback]:
        """Write panels of tested cases, and masks of predicted ones."""
        return [PanelWriter(), MaskWriter()]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, *S) of images (B, C, *S); of a net with deep supervision in training a list, finest first."""
        if self.facts is None:
            raise TaskError(_NO_CLASSES)
        logits: Tensor | list[Tensor] = self.net(image)
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch of patches."""
        loss: Tensor = self.loss(self(batch["image"]), batch["mask"])
        self.log("train/loss", loss, on_step=True, on_epoch=False, batch_size=len(batch["mask"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score whole cases on the grid of their files."""
        logits = restore(self.predictor.window(batch["image"]).float(), batch["grid"][0])
        self._log_loss("val", logits, batch)
        self.val_overlap.update(self.predictor.mask(logits), batch["mask"])

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Score whole cases on the grid of their files, in every way; returns the masks."""
        logits = self._predicted(batch).logits
        self._log_loss("test", logits, batch)
        mask, shares = self.predictor.mask(logits), self.predictor.probabilities(logits)
        self.test_scores.update(mask, batch["mask"], batch["spacing"], batch["case"], shares)
        return mask

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """What is written of the images, see `Predictor.outputs`."""
        return self.predictor.outputs(self._predicted(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all validation cases."""
        self.log_dict({f"val/{name}": value.float() for name, value in self.val_overlap.compute().items()})
        self.val_overlap.reset()

    def on_test_epoch_end(self) -> None:
        """Log the scores of all test cases, and write the table of them."""
        table = self.test_scores.compute()
        self.log_dict({f"test/{name}": torch.tensor(value) for name, value in table.metrics().items()})
        if self.trainer.is_global_zero:
            root = Path(self.trainer.default_root_dir)
            table.write_cases(root / CASES)
            table.write_summary(root / CASES_SUMMARY)
        self.test_scores.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the data's facts with the weights."""
        checkpoint[FACTS_KEY] = self.facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the data's facts from the checkpoint, and build the net if no data module has."""
        facts: DataFacts | None = checkpoint.get(FACTS_KEY)
        if facts:
            facts.setdefault("multi_label", False)  # checkpoints from before there were labels that overlap
            self._agree_on(facts)
            self.configure_model()

    def _agree_on(self, facts: DataFacts) -> None:
        if self.facts is None:
            self.facts = facts
            return
        for key in ("dim", "in_channels", "class_names", "multi_label"):
            if self.facts[key] != facts[key]:
                raise TaskError(
                    f"the checkpoint and the data differ in {key}: {facts[key]!r} against {self.facts[key]!r}; "
                    "give data of the same kind, or start a new run with --init_from."
                )

    def _predicted(self, batch: dict[str, Any]) -> Prediction:
        grid = batch["grid"][0]
        return self.predictor(batch["image"], None if grid is None else grid.spacing).restored(grid)

    def _log_loss(self, stage: str, logits: Tensor, batch: dict[str, Any]) -> None:
        loss = self.loss(logits, batch["mask"])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["mask"]), sync_dist=True)
