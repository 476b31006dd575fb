"""Statistics of a whole image for norms that pool positions, gathered tile by tile, exactly.

How a layer is told them is in `given_moments`, where the tiles lie in `windows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ics_apps.tasks.segmentation.inference.given_moments import (
    Moments,
    by_moments,
    pooling_norms,
    replaced_forwards,
)
from ics_apps.tasks.segmentation.inference.sliding_window import Progress, window_of
from ics_apps.tasks.segmentation.inference.windows import Slices, Tile


@dataclass(frozen=True)
class GlobalStatistics:
    """What `global_statistics` found.

    Attributes:
        tables: The moments of each layer, for `fixed_statistics`.
        sweeps: How often the tiles were gone through; each stops at the first norm that is not ready.
    """

    tables: Mapping[str, Moments]
    sweeps: int


def global_statistics(
    net: nn.Module, image: Tensor, parts: Sequence[Tile], stride: int, progress: Progress | None = None
) -> GlobalStatistics:
    r"""The moments that each norm would find if the net saw the whole image.

    Over tiles t with cores of n_t positions and means m_t, variances v_t: n = sum n_t, mean = sum n_t m_t / n and
    var = sum n_t (v_t + (m_t - mean)^2) / n, merged pair by pair in float64. Each position counts once, in its core.

    The input of a norm is right only if all norms before it have their moments already. So the tiles are gone through
    once for each norm along the longest chain: a sweep runs every tile up to the first norm that waits for another,
    and norms side by side (streams of a concatenation, a shortcut) are served in the same sweep. A net of L norms in a
    chain costs L sweeps of half its length on average, about L / 2 predictions of the image; nothing is kept between
    sweeps but tables (B, C).

    Args:
        net: In evaluation mode.
        image: (B, C, \*S); each sample has its own statistics.
        parts: Tiles with the net's halo; see `windows.tiles` and `needed_halo`.
        stride: The net's stride, as for the tiles.
        progress: Told after each tile of a sweep.

    Raises:
        ValueError: A norm cannot be told its moments, is called twice, has no place in the image, or its input is not
            finite.

    Reference: ours; exactness per level: see Buglakova 2025 (2503.19545) for the mismatch of single tiles.
    """
    if not image.isfinite().all():
        raise ValueError("the image has values that are not finite; replace them before it is predicted")
    norms = pooling_norms(net)
    tables: dict[str, Moments] = {}
    sweeps = 0
    while len(tables) < len(norms):
        found = _sweep(net, image, parts, stride, {name: m for name, m in norms.items() if name not in tables},
                       {norms[name]: table for name, table in tables.items()}, progress)  # fmt: skip
        if not found:
            break
        tables |= found
        sweeps += 1
    return GlobalStatistics(tables, sweeps)


def _sweep(
    net: nn.Module,
    image: Tensor,
    parts: Sequence[Tile],
    stride: int,
    open_norms: Mapping[str, nn.Module],
    known: Mapping[nn.Module, Moments],
    progress: Progress | None,
) -> dict[str, Moments]:
    """The moments of the open norms whose inputs are right."""
    gathered: dict[str, Moments] = {}
    forwards = {module: partial(by_moments, module, table) for module, table in known.items()}
    for done, tile in enumerate(parts, start=1):
        gatherers = {module: _Gatherer(name, tile, stride) for name, module in open_norms.items()}
        with replaced_forwards({**forwards, **gatherers}):
            stopped_at = _run(net, window_of(image, tile.window))
        own = {g.name: g.moments for g in gatherers.values() if g.moments is not None}
        if not own:
            if stopped_at:
                raise ValueError(f"the input of layer {stopped_at!r} is not finite; the net gives no prediction here")
            return {}
        gathered = {name: _merged(gathered.get(name), moments) for name, moments in own.items()}
        if progress is not None:
            progress(done, len(parts))
    return gathered


class _WaitingError(Exception):
    """A norm whose input is not right yet; raised to end a pass that has nothing more to tell."""


class _Gatherer:
    """Stands in for one norm: reads the moments in a tile's core, and gives NaN, which no later norm may read."""

    def __init__(self, name: str, tile: Tile, stride: int) -> None:
        self.name = name
        self.tile = tile
        self.stride = stride
        self.moments: Moments | None = None

    def __call__(self, x: Tensor, *_: object) -> Tensor:
        # One position tells: what stands behind a norm that gave NaN is NaN at all of them, in some channels at least.
        if x.flatten(2)[..., 0].isnan().any():
            raise _WaitingError(self.name)
        if self.moments is not None:
            raise ValueError(f"layer {self.name!r} is called twice in one pass, each time with statistics of its own")
        core = x[(slice(None), slice(None), *core_of_map(x.shape[2:], self.tile, self.stride, self.name))]
        var, mean = torch.var_mean(core.double().flatten(2), 2, correction=0)
        self.moments = Moments(mean, var, core[0, 0].numel())
        return torch.full_like(x, torch.nan)


def core_of_map(size: Sequence[int], tile: Tile, stride: int, layer: str) -> Slices:
    """The part of a layer's map that lies in the core of a tile; padding beyond the image belongs to the last core.

    Raises:
        ValueError: The map's size is no fraction of the window's.

    Example:
        >>> core_of_map([8], Tile((slice(8, 24),), (slice(12, 20),)), 4, "norm")  # a map of half the resolution
        (slice(2, 6, None),)
    """
    found = []
    for length, window, core in zip(size, tile.window, tile.core, strict=True):
        extent = -(-(window.stop - window.start) // stride) * stride
        begin, rest = divmod((core.start - window.start) * length, extent)
        end, other = divmod((core.stop - window.start) * length, extent)
        if core.stop == window.stop:
            end, other = length, 0
        if rest or other:
            raise ValueError(
                f"layer {layer!r} has {length} positions for a window of {extent}: its map is no fraction of the "
                "image, so tiles cannot share its statistics"
            )
        found.append(slice(begin, end))
    return tuple(found)


def _run(net: nn.Module, window: Tensor) -> str:
    """Run the net as far as it can go; the name of the norm that waits, empty if none does."""
    try:
        net(window)
    except _WaitingError as waiting:
        return str(waiting)
    return ""


def _merged(first: Moments | None, second: Moments) -> Moments:
    if first is None:
        return second
    positions = first.positions + second.positions
    share = second.positions / positions
    gap = second.mean - first.mean
    mean = first.mean + share * gap
    var = (1 - share) * first.var + share * (second.var + (1 - share) * gap.square())
    return Moments(mean, var, positions)
