"""Time of a training step through the task and the Trainer, beside a plain torch loop on the same net and batches.

Prints both in one run, in turn, and their ratio; the bar is 1.05. Usage: python benchmarks/training_step.py [--steps N]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ics_apps.nets import UNet
from ics_apps.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint
from ics_apps.runs.metrics import MetricsLogger
from ics_apps.runs.seeding import SeedEveryEpoch
from ics_apps.tasks.segmentation import DiceCELoss, SegmentationTask
from ics_apps.tasks.segmentation.data import PhantomData

BAR = 1.05
SKIPPED = 3  # first steps of a turn: allocation and kernel choice


class StepClock(Callback):
    """The moments at which training steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the moment."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=6, help="turns of each side")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="patch edge")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    data = PhantomData(size=options.size, num_cases=8, num_val=1, num_test=1, batch_size=8,
                       patches_per_epoch=8 * options.steps)  # fmt: skip
    data.setup("fit")
    net = UNet(1, 4, width=options.width, depth=3).to(memory_format=torch.channels_last)
    plain: list[float] = []
    through: list[float] = []
    for turn in range(options.turns):
        sides = [(plain, plain_loop), (through, trainer_loop)]
        for times, loop in sides if turn % 2 == 0 else reversed(sides):
            ends = loop(copy.deepcopy(net), data)
            times += [b - a for a, b in zip(ends[SKIPPED:], ends[SKIPPED + 1 :], strict=False)]
    print(f"U-Net width {options.width}, batch 8x1x{options.size}x{options.size}, {torch.get_num_threads()} threads, "
          f"{len(plain)} steps a side in turns")  # fmt: skip
    for name, times in (("plain torch loop", plain), ("task and Trainer", through)):
        print(f"  {name:<18} median {median(times) * 1e3:7.1f} ms   min {min(times) * 1e3:7.1f} ms")
    ratios = median(through) / median(plain), min(through) / min(plain)
    print(f"  ratio              median {ratios[0]:.3f}      min {ratios[1]:.3f}      (bar {BAR})")


def plain_loop(net: UNet, data: PhantomData) -> list[float]:
    """What a person would write without Lightning."""
    loss_of = DiceCELoss()
    optimizer = torch.optim.AdamW(net.parameters())
    ends = []
    for batch in data.train_dataloader():
        loss = loss_of(net(batch["image"]), batch["mask"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return ends


def trainer_loop(net: UNet, data: PhantomData) -> list[float]:
    """The same steps through `SegmentationTask`, with the logger, checkpoints and seeding of `ics-apps run`."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=folder, logger=MetricsLogger(Path(folder)),
            plugins=[AtomicCheckpointIO()], callbacks=[RunCheckpoint(), SeedEveryEpoch(0), clock],
            log_every_n_steps=5, limit_val_batches=0, num_sanity_val_steps=0, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=None,
        )  # fmt: skip
        task: LightningModule = SegmentationTask(net=partial(_same, net))
        trainer.fit(task, datamodule=data)
    return clock.ends


def _same(net: UNet, *_: Any) -> UNet:
    return net


if __name__ == "__main__":
    main()
