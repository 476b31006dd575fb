"""What blending windows costs beside MONAI, which is not needed for anything else: both on the same net and windows.

The two take turns, and the median of the ratios of neighbouring turns counts, so that a busy machine slows both alike.
Arms: a net that does nothing, so that only cutting, weighting and adding is timed; and a U-Net.

    pip install --target DIR --no-deps monai
    PYTHONPATH=DIR python benchmarks/sliding_window.py --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from ics_apps.nets import UNet
from ics_apps.tasks.segmentation.inference.sliding_window import sliding_window

BAR = 0.8  # of MONAI's time
CLASSES = 3
CASES = {"2-D": ((512, 512), (128, 128)), "3-D": ((96, 96, 48), (48, 48, 24))}


class Copies(nn.Module):
    """A net that costs next to nothing: the image once for each class."""

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the image."""
        return x.repeat(1, CLASSES, *(1,) * (x.dim() - 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), overlap {options.overlap}, "
          f"{options.batch_size} windows at once, gaussian\n")  # fmt: skip
    print(f"{'image':6}{'net':14}{'ours ms':>9}{'MONAI ms':>10}{'ratio':>7}{'difference':>12}")
    for name, (size, roi) in CASES.items():
        image = torch.randn(1, 1, *size)
        nets = {"copies": Copies(), "U-Net": UNet(1, CLASSES, dim=len(size), width=8, depth=3).eval()}
        for label, net in nets.items():
            print(f"{name:6}{label:14}" + compare(net, image, roi, options))
    print(f"\nbar: {BAR} of MONAI's time")


def compare(net: nn.Module, image: Tensor, roi: tuple[int, ...], options: argparse.Namespace) -> str:
    from monai.inferers import sliding_window_inference  # type: ignore[import-not-found]

    def ours() -> Tensor:
        return sliding_window(image, net, roi, overlap=options.overlap, batch_size=options.batch_size)

    def theirs() -> Tensor:
        found: Tensor = sliding_window_inference(image, roi, options.batch_size, net, options.overlap, "gaussian")
        return found

    with torch.inference_mode():
        difference = float((ours() - theirs()).abs().max())
        times = [(timed(ours), timed(theirs)) for _ in range(options.turns)]
    own, other = (min(column) * 1e3 for column in zip(*times, strict=True))
    ratio = median(first / second for first, second in times)
    return f"{own:9.1f}{other:10.1f}{ratio:7.2f}{difference:12.1e}"


def timed(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
