"""Seams of tiled predictions, norm by norm: with each window's own statistics, and with those of the whole image.

A small U-Net with each norm learns a phantom for a few steps, then predicts a larger one by tiles with the full halo.
The image gets brighter and louder to one side, as under a bias field, so that the tiles differ.

    python benchmarks/seams.py --threads 2
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from ics_apps.nets import UNet
from ics_apps.tasks.segmentation.inference.given_moments import fixed_statistics
from ics_apps.tasks.segmentation.inference.global_statistics import global_statistics
from ics_apps.tasks.segmentation.inference.receptive_field import needed_halo
from ics_apps.tasks.segmentation.inference.seams import seam_score
from ics_apps.tasks.segmentation.inference.sliding_window import tiled
from ics_apps.tasks.segmentation.inference.windows import tiles
from ics_apps.tasks.segmentation.losses import DiceCELoss

NORMS = ("batch", "batch_renorm", "instance", "group", "layer_chw", "filter_response", "layer_c", "rms", "none")
HEADER = f"{'norm':18}{'mismatch':>10}{'edges':>8}{'tiled - whole':>15}{'global - whole':>16}{'sweeps':>8}"
SIZE, WINDOW = 192, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--norms", nargs="+", default=NORMS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{SIZE} x {SIZE} in tiles of {WINDOW}, {options.steps} steps of training; largest difference of "
          f"probabilities\n\n{HEADER}")  # fmt: skip
    for norm in options.norms:
        print(row(norm, options.steps))


def row(norm: str, steps: int) -> str:
    torch.manual_seed(0)
    net = UNet(1, 2, norm=norm, width=8, depth=2)
    train(net, steps)
    net.eval()
    image, _ = phantom(1, SIZE)
    halo = needed_halo(net, 1, 2)

    def probabilities(x: Tensor) -> Tensor:
        found: Tensor = net(x).softmax(1)
        return found

    with torch.no_grad():
        score = seam_score(image, probabilities, (WINDOW, WINDOW), halo, net.stride)
        parts = tiles((SIZE, SIZE), (WINDOW, WINDOW), halo, net.stride)
        whole, own = probabilities(image), tiled(image, probabilities, parts)
        found = global_statistics(net, image, parts, net.stride)
        with fixed_statistics(net, found.tables):
            exact = tiled(image, probabilities, parts)
    differences = [float((y - whole).abs().max()) for y in (own, exact)]
    return (f"{norm:18}{score.mismatch:10.1e}{score.edge_ratio:8.2f}{differences[0]:15.1e}{differences[1]:16.1e}"
            f"{found.sweeps:8}")  # fmt: skip


def train(net: nn.Module, steps: int) -> None:
    loss, optimizer = DiceCELoss(), torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(steps):
        image, mask = phantom(4, 64)
        optimizer.zero_grad()
        loss(net(image), mask).backward()
        optimizer.step()


def phantom(number: int, size: int) -> tuple[Tensor, Tensor]:
    """Discs on noise, louder to the right."""
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    mask = torch.zeros(number, size, size, dtype=torch.long)
    for picture in mask:
        for _ in range(max(size // 24, 1) ** 2 // 2 + 1):
            centre, radius = torch.rand(2, 1, 1) * size, 4 + 6 * float(torch.rand(()))
            picture[(places - centre).square().sum(0) < radius**2] = 1
    field = torch.linspace(0.5, 2.0, size)
    return ((mask + 0.4 * torch.randn(mask.shape)) * field).unsqueeze(1), mask


if __name__ == "__main__":
    main()
