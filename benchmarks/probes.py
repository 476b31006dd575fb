"""What each probe costs: one measurement in units of a training step, and its share of training at its schedule.

The steps are those of a run without probes, the measurements those of a run that measures at every step; both runs take
turns, so that a busy machine slows both alike.

    python benchmarks/probes.py --models resnet18 unet --measurements 3
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ics_apps import callbacks
from ics_apps.callbacks.probe_callback import ProbeCallback
from ics_apps.nets import UNet

ALLOWED = 0.05  # share of training
# Which weights are scale invariant is found once, and again ever more rarely: in a run of this length, once in all.
FOUND_ONCE_IN = 1000
WARM = 2  # steps at the start of a run that are not counted
PROBES: tuple[type[ProbeCallback], ...] = (
    callbacks.ICSMonitor,
    callbacks.InputDriftMonitor,
    callbacks.LandscapeMonitor,
    callbacks.HessianMonitor,
    callbacks.ConditioningMonitor,
    callbacks.LeakageCheck,
    callbacks.ScaleInvarianceMonitor,
    callbacks.GradientFlowMonitor,
)


class Job(LightningModule):
    """Cross-entropy of random labels, by SGD."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum and decay, as image classifiers are trained."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


class Clock(Callback):
    """Seconds from the start of one batch to the start of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time."""
        self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Those of the steps that count."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)][WARM:]


def resnet18() -> tuple[nn.Module, list[Tensor]]:
    """A classifier of images 64 wide, batch 32."""
    from torchvision.models import resnet18 as make

    return make(num_classes=10), [torch.randn(32, 3, 64, 64), torch.randint(10, (32,))]


def unet() -> tuple[nn.Module, list[Tensor]]:
    """The U-Net of `segmentation/base`, batch 8 of 96 x 96."""
    return UNet(1, 3, width=8, depth=3), [torch.randn(8, 1, 96, 96), torch.randint(3, (8, 96, 96))]


def vit() -> tuple[nn.Module, list[Tensor]]:
    """A small vision transformer, batch 32 of 32 x 32."""
    import timm

    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=6, num_classes=10)
    return net, [torch.randn(32, 3, 32, 32), torch.randint(10, (32,))]


MODELS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {"resnet18": resnet18, "unet": unet, "vit": vit}


def train(net: nn.Module, batch: list[Tensor], steps: int, probe: ProbeCallback | None) -> list[float]:
    """Train, and return the seconds of each step."""
    clock = Clock()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *([probe] if probe else [])],
        default_root_dir=tempfile.mkdtemp(),
    )
    trainer.fit(Job(net), DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
    return clock.seconds()


def main() -> None:
    """Measure every probe on every model and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--measurements", type=int, default=3, help="of each probe; the least is taken")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for model in options.models:
        net, batch = MODELS[model]()
        print(f"\n{model}")
        print(f"{'probe':24s} {'measurement':>12s} {'step':>9s} {'in steps':>9s} {'every':>6s} {'share':>7s}")
        for probe in PROBES:
            report(probe, net, batch, options.measurements)


def report(probe: type[ProbeCallback], net: nn.Module, batch: list[Tensor], measurements: int) -> None:
    """Print one line."""
    plain, seconds = [], []
    for _ in range(measurements):
        plain += train(net, batch, WARM + 4, None)
        every = probe().every_n_steps
        callback = probe(every_n_steps=every)
        train(net, batch, WARM + 10, callback)
        seconds.append(callback.seconds)
    step, least = statistics.median(plain), min(seconds)
    spread = max(every, FOUND_ONCE_IN) if probe is callbacks.ScaleInvarianceMonitor else every
    share = least / step / spread
    mark = "" if share <= ALLOWED else "  <-- above 5 %"
    print(
        f"{probe.__name__:24s} {least:10.3f} s {step * 1e3:6.0f} ms {least / step:9.1f} {spread:6d} {share:7.2%}{mark}"
    )


if __name__ == "__main__":
    main()
