"""Writes the sample files beside this script: `segmentation/` holds PNG pairs of `PhantomData` in its first style.

Run it from the repository: `python data/samples/make_samples.py`. The same files come out each time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ics_apps.tasks.segmentation.data.phantom import make_phantom

CASES = 12
SIZE = (64, 64)
SEED = 7


def write_segmentation(folder: Path) -> None:
    """Write `images/` (8-bit grey) and `masks/` (0 background, 1 body, 2 organ, 3 lesion)."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(CASES):
        image, mask = make_phantom(SIZE, "reference", (SEED, 0, index))
        grey = np.clip(np.round(255 * (image[0] + 0.2) / 1.6), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"phantom_{index:02d}.png", optimize=True)
        Image.fromarray(mask).save(folder / "masks" / f"phantom_{index:02d}.png", optimize=True)


if __name__ == "__main__":
    write_segmentation(Path(__file__).parent / "segmentation")
