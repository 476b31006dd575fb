"""A block of activations (or a weight) drawn in text: which values share the statistics of one marked value.

A pure function from a registry entry to lines. Rows are samples N, columns channels C, and each cell is a run of
positions S; the drawing follows figure 2 of Wu & He 2018 (1803.08494) and `NormEntry.pools`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ics_apps.norms import NormEntry

SAMPLES: Final = 4
CHANNELS: Final = 4
GROUPS: Final = 2
POSITIONS: Final = 5
MARKED: Final = (1, 1, 2)  # sample, channel, position
OUTPUTS, FAN_IN, MARKED_WEIGHT = 4, 9, (1, 4)

VALUE, SHARED, OTHER = "@", "#", "."


@dataclass(frozen=True)
class _Scope:
    """Where a norm's statistics stop within the axes it pools, and the words that say so."""

    note: str
    samples: tuple[int, ...] = tuple(range(SAMPLES))
    sample_names: tuple[str, ...] = ("",) * SAMPLES
    near_channels: bool = False
    near_positions: bool = False


_EVERYTHING = _Scope("")
_SCOPES: Mapping[str, _Scope] = {
    "sync_batch": _Scope("The samples are those of all processes."),
    "ghost_batch": _Scope(
        "The batch is cut into ghost batches (here two of two samples) that do not see each other.",
        samples=(0, 1),
        sample_names=("ghost 0", "ghost 0", "ghost 1", "ghost 1"),
    ),
    "batch_per_domain": _Scope(
        "Each domain has statistics of its own.",
        samples=(1, 3),
        sample_names=("domain 0", "domain 1", "domain 0", "domain 1"),
    ),
    "virtual_batch": _Scope(
        "Besides, every sample shares the statistics of one fixed reference batch, which is not drawn."
    ),
    "adaptive_instance": _Scope(
        "What takes their place, mean and spread, is pooled in the same way from the style's map."
    ),
    "local_response": _Scope("Of the channels a window around each counts (here 3).", near_channels=True),
    "divisive": _Scope("Of the positions a window around each counts (here 3).", near_positions=True),
}
# One set of axes a statistic where a norm takes several; `pools` is their union, which no single statistic covers.
_PARTS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "switchable": (("Batch part", ("N", "S")), ("Layer part", ("C", "S")), ("Instance part", ("S",))),
    "batch_instance": (("Batch part", ("N", "S")), ("Instance part", ("S",))),
    "batch_layer": (("Batch part", ("N", "S")), ("Layer part", ("C", "S"))),
    "batch_channel": (("First, batch norm", ("N", "S")), ("Then, group norm of the result", ("C/G", "S"))),
    "evonorm_b0": (("Batch part", ("N", "S")), ("Instance part", ("S",))),
}
_WHOLE_WEIGHT = ("spectral_norm",)


def picture(entry: NormEntry) -> list[str]:
    """Lines that draw what a norm pools: `@` is one value, `#` are the values that share its statistics.

    Example:
        >>> from ics_apps.norms import norm_entry
        >>> for line in picture(norm_entry("group"))[:3]:
        ...     print(line)
        channel     0      1   |   2      3
        sample 0  .....  ..... | .....  .....
        sample 1  #####  ##@## | .....  .....
    """
    if entry.acts_on_weight:
        return _weight_picture(entry.name in _WHOLE_WEIGHT)
    scope = _SCOPES.get(entry.name, _EVERYTHING)
    parts = _PARTS.get(entry.name, (("", entry.pools),))
    lines: list[str] = []
    for title, pools in parts:
        lines += [f"{title}:"] if title else []
        lines += [*_block(pools, scope), ""]
    return [*lines, *_captions(entry, scope)]


def _block(pools: tuple[str, ...], scope: _Scope) -> list[str]:
    shares = _membership(pools, scope)
    rows = [("channel", tuple(str(channel).center(POSITIONS) for channel in range(CHANNELS)))]
    for sample in range(SAMPLES):
        cells = tuple(
            "".join(_mark((sample, channel, position), shares) for position in range(POSITIONS))
            for channel in range(CHANNELS)
        )
        rows.append((f"sample {sample} {scope.sample_names[sample]}".rstrip(), cells))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {_joined(cells, 'C/G' in pools)}".rstrip() for name, cells in rows]


def _membership(pools: tuple[str, ...], scope: _Scope) -> Callable[[tuple[int, int, int]], bool]:
    """Whether a (sample, channel, position) shares the statistics of the marked one."""

    def shares(place: tuple[int, int, int]) -> bool:
        (sample, channel, position), (own_sample, own_channel, own_position) = place, MARKED
        size = CHANNELS // GROUPS
        in_channel = (
            channel == own_channel
            or ("C" in pools and (not scope.near_channels or abs(channel - own_channel) <= 1))
            or ("C/G" in pools and channel // size == own_channel // size)
        )
        in_position = position == own_position or (
            "S" in pools and (not scope.near_positions or abs(position - own_position) <= 1)
        )
        return (sample == own_sample or ("N" in pools and sample in scope.samples)) and in_channel and in_position

    return shares


def _mark(place: tuple[int, int, int], shares: Callable[[tuple[int, int, int]], bool]) -> str:
    if place == MARKED:
        return VALUE
    return SHARED if shares(place) else OTHER


def _joined(cells: tuple[str, ...], grouped: bool) -> str:
    if not grouped:
        return "  ".join(cells)
    size = CHANNELS // GROUPS
    return " | ".join("  ".join(cells[start : start + size]) for start in range(0, CHANNELS, size))


def _captions(entry: NormEntry, scope: _Scope) -> list[str]:
    positions = "positions S" if any(dim in entry.dims for dim in (1, 2, 3)) else "tokens L"
    if entry.pools:
        meaning = f"{VALUE} is one value, {SHARED} are those that share its statistics, {OTHER} the others."
    else:
        meaning = f"No statistics of the input: {VALUE}, one value, is mapped without a look at any other ({OTHER})."
    cells = f"Each cell is the run of {positions} of one sample and channel."
    return [meaning, cells, *([scope.note] if scope.note else [])]


def _weight_picture(whole: bool) -> list[str]:
    rows = ["input     " + "  ".join(map(str, range(FAN_IN)))]
    for output in range(OUTPUTS):
        marks = [_weight_mark((output, column), whole) for column in range(FAN_IN)]
        rows.append(f"output {output}  " + "  ".join(marks))
    what = "one number for the whole weight" if whole else "statistics of one row"
    return [
        *rows,
        "",
        f"Acts on the weight ({what}), not on activations, so no sample sees another.",
        f"{VALUE} is one weight, {SHARED} are those that share its statistics, {OTHER} the others.",
        "A row is one output channel; its columns are the input channels and kernel positions (the fan-in).",
    ]


def _weight_mark(place: tuple[int, int], whole: bool) -> str:
    if place == MARKED_WEIGHT:
        return VALUE
    return SHARED if whole or place[0] == MARKED_WEIGHT[0] else OTHER
