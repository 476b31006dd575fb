"""What the activation monitor costs, beside what people use instead: naive hooks and histograms as others make them.

The arms take turns within one run, on the same model and batch, so that a busy machine slows all of them alike. The
bars are judged by the time spent inside the monitor's hooks and methods, by a clock of its own that noise of the step
does not touch, plus what torch spends to call its hooks.

    python benchmarks/monitor.py --steps 60 --repeats 3
"""

from __future__ import annotations

import argparse
import gc
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
from monitor_arms import GradientHistograms, HostHistograms, NaiveHooks, Timed, Watcher, Weighed, dispatch_seconds
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ics_apps.callbacks import ActivationMonitor
from ics_apps.probes import Recorder, select_layers

AMORTISED, SAMPLED, IDLE = 0.005, 0.05, 0.001  # shares of a step allowed: at defaults, sampled, not sampled
HELD, HELD_A_LAYER = 1_000_000, 1_000  # bytes allowed
WARM = 2  # steps at the start of each turn that are not counted
EVERY = ActivationMonitor().every_n_steps


@dataclass
class Arm:
    """One way to train and what was measured with it."""

    name: str
    make: Callable[[], Timed | Watcher | None]
    steps: list[float] = field(default_factory=list)  # seconds a step
    inside: list[list[float]] = field(default_factory=list)  # seconds inside the hooks: of each turn, each step


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
    parser.add_argument("--steps", type=int, default=60, help="steps of one turn of one arm, more than 3")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", default=["resnet18", "unet"], choices=["resnet18", "unet"])
    options = parser.parse_args()
    if options.steps <= WARM + 1:
        parser.error(f"--steps is {options.steps}; give at least {WARM + 2}: the first {WARM} are not counted.")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for model in options.models:
        measure(model, options.steps, options.repeats)


def measure(model: str, steps: int, repeats: int) -> None:
    arms = [
        Arm("no monitor", lambda: None),
        Arm(f"defaults (every {EVERY} steps)", Timed),
        Arm("every step", lambda: Timed(every_n_steps=1)),
        Arm("idle (only the first step)", lambda: Timed(hooks=False, every_n_steps=10**9)),
        Arm("naive .item() hooks", NaiveHooks),
        Arm("like bolts, every step", HostHistograms),
        Arm("like wandb.watch, every step", GradientHistograms),
    ]
    net, shape = resnet18() if model == "resnet18" else unet()
    for arm in arms[1:]:  # imports and first allocations are paid once
        run(Arm("warm-up", arm.make), net, shape, 2)
    # Or the collector walks through all that was imported, once, in whichever arm comes to its threshold.
    gc.collect()
    gc.freeze()
    for repeat in range(repeats):
        first = repeat % len(arms)
        for arm in arms[first:] + arms[:first]:
            run(arm, net, shape, steps)
    print(f"{model}, batch {'x'.join(map(str, shape))}, {torch.get_num_threads()} threads, {steps} steps x {repeats}")
    report(arms)
    hooks, gradient = dispatch_seconds(net)
    calls, layers = calls_of(net, shape), len(select_layers(net).chosen)
    print(f"  dispatch: {hooks / layers * 1e6:.1f} us a call of a layer, {gradient * 1e6:.1f} us a gradient")
    judge(arms, hooks / layers * calls, gradient * calls)
    weigh(net, shape)


def run(arm: Arm, net: nn.Module, shape: tuple[int, ...], steps: int) -> None:
    watcher, clock = arm.make(), StepClock()
    fit(net, shape, steps, [clock] if watcher is None else [clock, watcher])
    arm.steps += [after - before for before, after in zip(clock.marks[WARM:], clock.marks[WARM + 1 :], strict=False)]
    if watcher is not None:
        arm.inside.append(watcher.clock.steps)


def fit(net: nn.Module, shape: tuple[int, ...], steps: int, callbacks: list[Callback]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=callbacks,
        )
        trainer.fit(Job(net), DataLoader(Batches(shape, steps), batch_size=None))


def report(arms: list[Arm]) -> None:
    base_least, base_middle = min(arms[0].steps), statistics.median(arms[0].steps)
    print(f"  {'':32}{'min ms':>9}{'median ms':>11}{'min ratio':>11}{'median ratio':>14}{'inside hooks':>14}")
    for arm in arms:
        least, middle = min(arm.steps), statistics.median(arm.steps)
        inside = statistics.mean(statistics.mean(turn) for turn in arm.inside) if arm.inside else 0.0
        times = f"{least * 1e3:9.1f}{middle * 1e3:11.1f}"
        ratios = f"{least / base_least:11.3f}{middle / base_middle:14.3f}"
        print(f"  {arm.name:32}{times}{ratios}{inside / base_middle:14.2%}")


def judge(arms: list[Arm], dispatch: float, dispatch_gradients: float) -> None:
    """Hold the time spent inside the monitor, and in calling it, against the bars."""
    step = statistics.median(arms[0].steps)
    _, defaults, sampled, idle, *_ = arms
    # A turn shorter than the interval still has one sample: that sample is due once an interval.
    amortised = statistics.mean(sum(turn) / (-(-len(turn) // EVERY) * EVERY) for turn in defaults.inside)
    at_sample = statistics.mean(seconds for turn in sampled.inside for seconds in turn[WARM:])
    at_rest = statistics.median(seconds for turn in idle.inside for seconds in turn[WARM:])
    bar("amortised at defaults", (amortised + dispatch + dispatch_gradients / EVERY) / step, AMORTISED)
    bar("a fully sampled step", (at_sample + dispatch + dispatch_gradients) / step, SAMPLED)
    bar("an idle step", (at_rest + dispatch) / step, IDLE)


def bar(what: str, share: float, allowed: float) -> None:
    print(f"  bar: {what}: {share:.3%} of a step, allowed {allowed:.1%}: {'holds' if share <= allowed else 'BROKEN'}")


def weigh(net: nn.Module, shape: tuple[int, ...]) -> None:
    """Print the memory that the monitor holds, against its bar."""
    weighed = Weighed(every_n_steps=1)
    fit(net, shape, 7, [weighed])  # one sample less than are written at once: as many as ever wait in memory
    layers = len(select_layers(net).chosen)
    allowed = HELD + HELD_A_LAYER * layers
    held = weighed.arrays + weighed.objects
    print(
        f"  bar: memory held: {weighed.arrays / 1e3:,.0f} kB in arrays and {weighed.objects / 1e3:,.0f} kB in Python "
        f"objects, allowed {allowed / 1e3:,.0f} kB for {layers} layers: {'holds' if held <= allowed else 'BROKEN'}; "
        f"{weighed.peak / 1e3:,.0f} kB more for a moment while a table is made\n"
    )


def calls_of(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Forwards of watched layers in a step."""
    with Recorder(select_layers(net).chosen) as recorder, torch.no_grad():
        recorder.start(0)
        net(torch.randn(shape))
        return len(recorder.close()["call"])


def resnet18() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import resnet18 as build  # type: ignore[import-untyped]

    net: nn.Module = build(num_classes=10)
    return net, (32, 3, 64, 64)


def unet() -> tuple[nn.Module, tuple[int, ...]]:
    from ics_apps.nets import UNet

    return UNet(1, 2, width=8, depth=3), (8, 1, 128, 128)


if __name__ == "__main__":
    main()
