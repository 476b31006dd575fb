"""Images a second of a training step of our U-Nets beside MONAI's and SMP's, and what norms on the streams cost.

Forward, cross-entropy, backward and AdamW on 8 x 1 x 128 x 128 images. Ours run as the recipes run them: channels_last,
and bf16 where the processor has instructions for it (`--precision` sets it by hand). The others run as shipped, float32
and contiguous, and again (`tuned`) as ours do. The arms take turns and the least time of each counts. MONAI and SMP are
no dependencies: what is not installed is left out.

    python benchmarks/segmentation.py --threads 2
    python benchmarks/segmentation.py --only streams --cpu-time --threads 1   (for a machine that others use too)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ics_apps.callbacks.auto_precision import bf16_is_native
from ics_apps.nets import TimmUNet, UNet

BATCH, SIZE = 8, 128
STREAM_BAR = 1.10
STREAM_NORMS = ("batch", "instance", "group", "rms")

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Arm:
    """A net and how it is run."""

    make: Make
    channels_last: bool
    bf16: bool


def monai(name: str, *arguments: Any, **options: Any) -> nn.Module:
    net: nn.Module = getattr(import_module("monai.networks.nets"), name)(*arguments, **options)
    return net


def smp_resnet18() -> nn.Module:
    package = import_module("segmentation_models_pytorch")
    net: nn.Module = package.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2)
    return net


FOREIGN: Mapping[str, Make] = {
    "MONAI UNet": lambda: monai("UNet", 2, 1, 2, (32, 64, 128, 256, 512), (2, 2, 2, 2), num_res_units=2),
    "MONAI BasicUNet": lambda: monai("BasicUNet", spatial_dims=2, in_channels=1, out_channels=2),
    "SMP resnet18": smp_resnet18,
}
OURS: Mapping[str, Make] = {
    "UNet 16": lambda: UNet(1, 2, width=16),
    "UNet 32, fold 2": lambda: UNet(1, 2, width=32, fold=2),
    "UNet 22, depth 5, fold 2": lambda: UNet(1, 2, width=22, depth=5, max_width=704, fold=2),
    "TimmUNet resnet18": lambda: TimmUNet(1, 2, encoder="resnet18"),
}
# Ours, the other, how they are equal, and how many times the other's images a second ours has to reach.
BARS = (
    ("UNet 32, fold 2", "MONAI UNet", "operations", 2.0),
    ("UNet 16", "MONAI UNet", "operations", 2.0),
    ("UNet 16", "MONAI BasicUNet", "parameters", 4.0),
    ("UNet 32, fold 2", "MONAI BasicUNet", "nothing", 4.0),
    ("UNet 22, depth 5, fold 2", "SMP resnet18", "parameters", 1.0),
    ("TimmUNet resnet18", "SMP resnet18", "parameters", 1.0),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--only", choices=("nets", "streams"))
    parser.add_argument("--cpu-time", action="store_true", help="the thread's processor time instead of the clock's")
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time counts one thread; give --threads 1")
    torch.set_num_threads(options.threads)
    bf16 = options.precision == "bf16" or (options.precision == "auto" and bf16_is_native(torch.device("cpu")))
    clock = time.thread_time if options.cpu_time else time.perf_counter
    print(
        f"{options.threads} threads, ours in {'bf16' if bf16 else 'float32'} channels_last, torch {torch.__version__}"
    )
    if options.only != "streams":
        compare_nets(bf16, options.repeats, clock)
    if options.only != "nets":
        for base in ("UNet 16", "UNet 32, fold 2"):
            compare_streams(base, bf16, options.repeats, clock)


def compare_nets(bf16: bool, repeats: int, clock: Callable[[], float]) -> None:
    arms = {name: Arm(make, True, bf16) for name, make in OURS.items()}
    for name, make in FOREIGN.items():
        try:
            make()
        except ImportError as error:
            print(f"left out: {name} ({error})")
            continue
        arms[name] = Arm(make, False, False)
        arms[f"{name}, tuned"] = Arm(make, True, bf16)
    seconds = least_seconds({name: training_step(arm) for name, arm in arms.items()}, repeats, clock)
    print(f"\n{'net':28}{'M parameters':>14}{'GFLOP an image':>16}{'ms a step':>11}{'images/s':>10}")
    for name, arm in arms.items():
        net = arm.make()
        size = sum(parameter.numel() for parameter in net.parameters()) / 1e6
        print(
            f"{name:28}{size:14.2f}{giga_operations(net):16.3f}{seconds[name] * 1e3:11.1f}{BATCH / seconds[name]:10.1f}"
        )
    print("\nimages/s of ours over the other's")
    for ours, other, equal, bar in BARS:
        if other in seconds:
            shipped, tuned = (seconds[name] / seconds[ours] for name in (other, f"{other}, tuned"))
            verdict = "reached" if shipped >= bar else "MISSED"
            print(f"{ours} / {other} (equal {equal}): x{shipped:.2f}, bar {bar}: {verdict}; tuned x{tuned:.2f}")


def compare_streams(base: str, bf16: bool, repeats: int, clock: Callable[[], float]) -> None:
    """Batch norm everywhere, and `normalize_streams: both` with each norm on the streams."""
    options = {"width": 16} if base == "UNet 16" else {"width": 32, "fold": 2}
    arms = {"none": Arm(lambda: UNet(1, 2, **options), True, bf16)}  # type: ignore[arg-type]
    for norm in STREAM_NORMS:
        arms[norm] = Arm(
            lambda norm=norm: UNet(  # type: ignore[misc]
                1, 2, normalize_streams="both", site_norms={"skip": norm, "up": norm}, **options
            ),
            True,
            bf16,
        )
    seconds = least_seconds({name: training_step(arm) for name, arm in arms.items()}, repeats, clock)
    print(f"\n{base}, norms on both streams: a step without them takes {seconds['none'] * 1e3:.1f} ms")
    for norm in STREAM_NORMS:
        ratio = seconds[norm] / seconds["none"]
        print(f"  {norm:10} x{ratio:.3f}, bar {STREAM_BAR}: {'reached' if ratio <= STREAM_BAR else 'MISSED'}")


def training_step(arm: Arm) -> Callable[[], None]:
    torch.manual_seed(0)
    layout = torch.channels_last if arm.channels_last else torch.contiguous_format
    net = arm.make().to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(BATCH, 1, SIZE, SIZE).to(memory_format=layout)
    mask = torch.randint(0, 2, (BATCH, SIZE, SIZE))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=arm.bf16):
            loss = F.cross_entropy(net(image), mask)
        loss.backward()
        optimizer.step()

    return step


def least_seconds(
    steps: Mapping[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(repeats + 1):
        for name, step in steps.items():
            started = clock()
            step()
            # The first turn allocates and chooses kernels.
            best[name] = min(best[name], clock() - started) if turn else best[name]
    return best


def giga_operations(net: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 1, SIZE, SIZE))
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
