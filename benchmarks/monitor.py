"""What the activation monitor costs: step time without it, at its defaults and at every step, side by side.

The arms take turns within one run, so that a busy machine slows all of them alike; the time spent inside the monitor
is also summed with a clock of its own, which noise of the step does not touch.

    python benchmarks/monitor.py --steps 60 --repeats 3
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ics_apps.callbacks import ActivationMonitor

BAR = 0.01  # share of the step allowed at defaults


@dataclass
class Arm:
    """One way to train and what was measured with it."""

    name: str
    make: Callable[[], ActivationMonitor | None]
    steps: list[float] = field(default_factory=list)  # seconds a step
    inside: list[float] = field(default_factory=list)  # seconds inside the monitor, a step, averaged over a repeat


class Timed(ActivationMonitor):
    """The monitor with a clock around everything it does during a step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put clocks around the hooks too."""
        super().on_fit_start(trainer, pl_module)
        recorder: Any = self._recorder
        recorder.before, recorder.after = self._clocked(recorder.before), self._clocked(recorder.after)

    def on_train_batch_start(self, *args: Any) -> None:
        """As in the monitor, timed."""
        self._clocked(super().on_train_batch_start)(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        """As in the monitor, timed."""
        self._clocked(super().on_train_batch_end)(*args)

    def on_train_epoch_end(self, *args: Any) -> None:
        """As in the monitor, timed."""
        self._clocked(super().on_train_epoch_end)(*args)

    def _clocked(self, function: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            start = time.perf_counter()
            function(*args)
            self.seconds += time.perf_counter() - start

        return run


class StepClock(Callback):
    """Seconds from the start of one batch to the start of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time."""
        self.marks.append(time.perf_counter())

    def on_train_end(self, *_: Any) -> None:
        """Note the time."""
        self.marks.append(time.perf_counter())


class Batches(Dataset[Tensor]):
    """The same random batch, over and over."""

    def __init__(self, shape: tuple[int, ...], number: int) -> None:
        self.batch, self.number = torch.randn(shape), number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Tensor:
        return self.batch


class Job(LightningModule):
    """Mean square of the output, by SGD."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean square of the output."""
        output: Tensor = self.net(batch)
        return output.float().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, so slow that every arm computes with the same numbers."""
        return torch.optim.SGD(self.parameters(), lr=1e-7)


def main() -> None:
    """Run every model and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of one turn of one arm")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", default=["resnet18", "unet"], choices=["resnet18", "unet"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for model in options.models:
        measure(model, options.steps, options.repeats)


def measure(model: str, steps: int, repeats: int) -> None:
    default = ActivationMonitor().every_n_steps
    arms = [
        Arm("no monitor", lambda: None),
        Arm(f"defaults (every {default} steps)", Timed),
        Arm("every step", lambda: Timed(every_n_steps=1)),
    ]
    net, shape = resnet18() if model == "resnet18" else unet()
    run(Arm("warm-up", lambda: Timed(every_n_steps=2)), net, shape, 4)  # imports and first allocations are paid once
    for repeat in range(repeats):
        for arm in arms[repeat % 3 :] + arms[: repeat % 3]:
            run(arm, net, shape, steps)
    report(f"{model}, batch {'x'.join(map(str, shape))}, {torch.get_num_threads()} threads", arms)
    idle = idle_cost(net, shape) / statistics.median(arms[0].steps)
    print(f"  idle: {idle:.3%} of the step for hooks that return at once\n")


def run(arm: Arm, net: nn.Module, shape: tuple[int, ...], steps: int) -> None:
    monitor, clock = arm.make(), StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[clock] if monitor is None else [clock, monitor],
        )
        trainer.fit(Job(net), DataLoader(Batches(shape, steps), batch_size=None))
    arm.steps += [after - before for before, after in zip(clock.marks[2:], clock.marks[3:], strict=False)]
    arm.inside.append(monitor.seconds / steps if isinstance(monitor, Timed) else 0.0)


def report(title: str, arms: list[Arm]) -> None:
    base_least, base_middle = min(arms[0].steps), statistics.median(arms[0].steps)
    print(title)
    print(f"  {'':28}{'min ms':>9}{'median ms':>11}{'min ratio':>11}{'median ratio':>14}{'inside monitor':>16}")
    for arm in arms:
        least, middle, inside = min(arm.steps), statistics.median(arm.steps), statistics.median(arm.inside)
        times = f"{least * 1e3:9.1f}{middle * 1e3:11.1f}"
        ratios = f"{least / base_least:11.3f}{middle / base_middle:14.3f}"
        print(f"  {arm.name:28}{times}{ratios}{inside / base_middle:16.2%}")
    share = statistics.median(arms[1].inside) / base_middle
    print(f"  bar: {share:.2%} of the step at defaults, allowed {BAR:.0%}: {'holds' if share <= BAR else 'BROKEN'}")


def idle_cost(net: nn.Module, shape: tuple[int, ...], rounds: int = 20_000) -> float:
    """Seconds a step that closed hooks cost: of one call, times the calls of a step."""
    from ics_apps.probes import Recorder, select_layers

    recorder = Recorder(select_layers(net).chosen)
    with recorder, torch.no_grad():
        recorder.start(0)
        net(torch.randn(shape))
        calls = len(recorder.close()["call"])
    layer = nn.Identity()
    bare = _seconds(layer, rounds)
    with Recorder(select_layers(nn.Sequential(layer), "0").chosen):
        hooked = _seconds(layer, rounds)
    return calls * max(hooked - bare, 0.0)


def resnet18() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import resnet18 as build  # type: ignore[import-untyped]

    net: nn.Module = build(num_classes=10)
    return net, (32, 3, 64, 64)


def unet() -> tuple[nn.Module, tuple[int, ...]]:
    from ics_apps.nets import UNet

    return UNet(1, 2, width=8, depth=3), (8, 1, 128, 128)


def _seconds(layer: nn.Module, rounds: int) -> float:
    x, least = torch.zeros(1), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(rounds):
            layer(x)
        least = min(least, (time.perf_counter() - start) / rounds)
    return least


if __name__ == "__main__":
    main()
