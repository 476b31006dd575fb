"""What every registered norm costs beside torch's batch norm, and beside the torch kernel that computes the same.

Forward and backward, float32, in training mode. The arms take turns within one run and the least time of each counts,
so that a busy machine slows all of them alike.

    python benchmarks/norms.py --threads 2
    python benchmarks/norms.py --channels-last --norms 'batch*' --repeats 30
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]

from ics_apps.cli.norms.cost import (
    REPEATS,
    SHAPE,
    Arm,
    Timing,
    batch_norm_arm,
    made_input,
    measured_dim,
    module_arm,
    norm_arm,
    processor_name,
    time_in_turns,
)  # fmt: skip
from ics_apps.norms import NormEntry, NormError, list_norms, norm_entry

BATCH_BAR = 2.0  # times batch norm that a norm may take
KERNEL_BAR = 1.10  # times its torch kernel that a norm made of one may take

Shape = tuple[int, int, int, int]


class Permuted(nn.Module):
    """A torch layer of the last axis, run over the channels of an image as one would by hand."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Move the channels last and back."""
        y: Tensor = self.layer(x.movedim(1, -1))
        return y.movedim(-1, 1)


KERNELS: Mapping[str, tuple[str, Callable[[NormEntry, int], nn.Module]]] = {
    "batch": ("BatchNorm2d", lambda _, channels: nn.BatchNorm2d(channels)),
    "batch_frozen": ("FrozenBatchNorm2d", lambda _, channels: FrozenBatchNorm2d(channels)),
    "layer": ("LayerNorm", lambda _, channels: nn.LayerNorm(channels)),
    "layer_c": ("LayerNorm, permuted", lambda _, channels: Permuted(nn.LayerNorm(channels))),
    "layer_chw": ("GroupNorm(1)", lambda _, channels: nn.GroupNorm(1, channels)),
    "group": ("GroupNorm", lambda entry, channels: nn.GroupNorm(entry.options["num_groups"], channels)),
    "instance": ("InstanceNorm2d", lambda _, channels: nn.InstanceNorm2d(channels, affine=True)),
    "rms": ("RMSNorm, permuted", lambda _, channels: Permuted(nn.RMSNorm(channels))),
    "local_response": ("LocalResponseNorm", lambda entry, _: nn.LocalResponseNorm(entry.options["size"])),
}
HEADER = f"{'norm':24}{'input':8}{'ms':>9}{'forward':>9}{'backward':>10}{'both':>7}{'of kernel':>11}  kernel"


def main() -> None:
    """Measure the chosen norms one by one and print a table, then which of them miss a bar."""
    options = parse()
    torch.set_num_threads(options.threads)
    layout = "channels_last" if options.channels_last else "contiguous"
    machine = processor_name() if options.device == "cpu" else options.device
    print(f"{options.shape} float32 {layout}, {options.threads} thread(s), {machine}, torch {torch.__version__}, "
          f"minimum of {options.repeats} turns")  # fmt: skip
    print(f"ms of forward+backward; forward, backward and both as ratios to torch's batch norm\n\n{HEADER}")
    missed: list[str] = []
    for name in list_norms(options.norms, options.family):
        entry = norm_entry(name)
        try:
            timings = measure(entry, options.shape, options.repeats, options.channels_last, options.device)
        except NormError as error:
            print(f"{name:24}refused: {error}")
            continue
        print(row(entry, *timings))
        missed += misses(name, *timings)
    print(f"\nbars: {BATCH_BAR:.2f}x batch norm, {KERNEL_BAR:.2f}x the kernel; "
          f"{'missed by ' + ', '.join(missed) if missed else 'all norms above hold them'}")  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", default="*", metavar="PATTERN", help="shell-style pattern of names")
    parser.add_argument("--family", help="one family only")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="counted turns of each arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels-last", action="store_true", help="images in channels_last; other inputs as ever")
    parser.add_argument("--shape", type=shape, default=SHAPE, metavar="B,C,H,W")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def shape(text: str) -> Shape:
    sizes = tuple(int(part) for part in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"a shape is four positive sizes B,C,H,W, got {text!r}")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def measure(
    entry: NormEntry, size: Shape, repeats: int, channels_last: bool, device: str
) -> tuple[Timing, Timing, Timing | None]:
    """The norm, batch norm and the kernel, in turns."""
    arms = [make(entry, size, channels_last=channels_last, device=device) for make in (norm_arm, batch_norm_arm)]
    if entry.name in KERNELS:
        arms.append(kernel_arm(entry, size, channels_last, device))
    norm, batch, *kernel = time_in_turns(arms, repeats)
    return norm, batch, kernel[0] if kernel else None


def kernel_arm(entry: NormEntry, size: Shape, channels_last: bool, device: str) -> Arm:
    kernel = KERNELS[entry.name][1](entry, size[1]).to(device)
    return module_arm(kernel, made_input(measured_dim(entry), size, channels_last=channels_last, device=device))


def row(entry: NormEntry, norm: Timing, batch: Timing, kernel: Timing | None) -> str:
    kind = "weight" if entry.acts_on_weight else {2: "image", "tokens": "tokens"}.get(measured_dim(entry), "other")
    ratios = f"{norm.forward / batch.forward:9.2f}{norm.backward / batch.backward:10.2f}{norm.both / batch.both:7.2f}"
    beside = f"{norm.both / kernel.both:11.2f}  {KERNELS[entry.name][0]}" if kernel else f"{'-':>11}"
    return f"{entry.name:24}{kind:8}{norm.both * 1e3:9.3f}{ratios}{beside}"


def misses(name: str, norm: Timing, batch: Timing, kernel: Timing | None) -> list[str]:
    """How a norm misses the bars, as words; none if it holds them."""
    found = []
    if norm.both > BATCH_BAR * batch.both:
        found.append(f"{name} ({norm.both / batch.both:.2f}x batch norm)")
    if kernel is not None and norm.both > KERNEL_BAR * kernel.both:
        found.append(f"{name} ({norm.both / kernel.both:.2f}x its kernel)")
    return found


if __name__ == "__main__":
    main()
