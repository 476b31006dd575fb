"""Reading TIFF: 8- and 16-bit, float, colour, and stacks of pages."""

from __future__ import annotations

import zlib
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.tasks.segmentation.data.volume import FileFaultError, Volume, check_size, plain

# By TIFF code. The others are left out because no decoder of theirs here stops at the size that the header states.
COMPRESSIONS: Final = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate"}


def read_tiff(path: Path, max_voxels: int) -> Volume:
    """Read an image as (C, *S): pages are the depth axis, axes named S or C the channels.

    Raises:
        FileFaultError: Too large, an unknown compression, or axes that have no meaning here.
    """
    import tifffile

    # An OME header may name further files; only this one is ours to read.
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        if len(tiff.series) != 1:
            raise FileFaultError(
                f"the TIFF holds {len(tiff.series)} series of pages of unlike sizes; save one stack a file"
            )
        series = tiff.series[0]
        axes, shape = str(series.axes), tuple(int(n) for n in series.shape)
        check_size(shape, max_voxels)
        for page in series.pages:
            if page is None:
                raise FileFaultError(f"a page of its stack of {len(series.pages)} is missing")
            _check_page(page)
        try:
            values = np.asarray(series.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            values, axes = _tiff_pages(path, shape, axes)
    kept = [i for i, (axis, n) in enumerate(zip(axes, values.shape, strict=True)) if n > 1 or axis in "YX"]
    values = values.reshape([values.shape[i] for i in kept])
    axes = "".join(axes[i] for i in kept)
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    if len(channels) > 1 or not 2 <= values.ndim - len(channels) <= 3:
        raise FileFaultError(
            f"the TIFF has axes {axes} of sizes {values.shape}; allowed are Y, X, one stack axis, channels"
        )
    planes = np.moveaxis(values, channels[0], 0) if channels else values[None]
    return Volume(plain(planes), (1.0,) * (planes.ndim - 1))


def _check_page(page: Any) -> None:
    """Refuse a page whose packed bytes hold more than its header says, which tifffile would unpack whole."""
    code = int(page.compression)
    if code not in COMPRESSIONS:
        allowed = ", ".join(sorted(set(COMPRESSIONS.values())))
        raise FileFaultError(
            f"TIFF compression {page.compression.name} is not supported; save it with one of {allowed}"
        )
    if COMPRESSIONS[code] != "deflate":
        return
    allowed_bytes = prod(page.chunks) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        page.parent.filehandle.seek(offset)
        unpacker = zlib.decompressobj()
        unpacker.decompress(page.parent.filehandle.read(count), allowed_bytes)
        if unpacker.unconsumed_tail:
            raise FileFaultError(f"its packed bytes hold more than the {allowed_bytes} bytes that its header states")


def _tiff_pages(path: Path, shape: tuple[int, ...], axes: str) -> tuple[NDArray[Any], str]:
    # tifffile needs a further package for LZW and JPEG; Pillow brings both.
    from PIL import Image, ImageSequence

    with Image.open(path, formats=("TIFF",)) as image:
        pages = np.stack([np.array(page) for page in ImageSequence.Iterator(image)])
    if pages.size != prod(shape):
        raise FileFaultError("its compression needs imagecodecs: pip install imagecodecs")
    return pages.reshape(shape), axes
