"""What a conversion did: one row a norm, and the norms that no module owns. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvertedNorm:
    """One norm of the model.

    Attributes:
        name: Its qualified name in the model; a shared norm has all of its names, joined by " = ".
        old: The class it was.
        new: The class it is now, or "folded into NAME"; None if it was left as it is.
        channels: Size of the channel axis, None where it is not known.
        layout: Axes of its input: "(B, C)", "(B, C, S)" with one to three S, "(B, L, C)", "(B, ..., C)" or
            "(B, C, ...)" where one layer takes several ranks; empty if unknown.
        note: Why it was left, or what changed beside the class.
    """

    name: str
    old: str
    new: str | None
    channels: int | None = None
    layout: str = ""
    note: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """All norms of a model, replaced or not, in the model's order.

    `str(report)` is a table. The rows are data: `[row.name for row in report.kept]`.

    Attributes:
        rows: One a norm.
        not_reached: Norms computed by function calls outside any norm module, as "FUNCTION in MODULE (CLASS)"; found
            only if an example input was given.
        notes: What the conversion changed outside the norms.

    Example:
        >>> report = ConversionReport((ConvertedNorm("bn1", "BatchNorm2d", "GroupNorm", 64, "(B, C, S, S)"),))
        >>> len(report.replaced), len(report.kept)
        (1, 0)
        >>> print(report)
        1 norm: 1 replaced, 0 left
        bn1  64  (B, C, S, S)  BatchNorm2d -> GroupNorm
    """

    rows: tuple[ConvertedNorm, ...]
    not_reached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def replaced(self) -> tuple[ConvertedNorm, ...]:
        """The rows of norms that were replaced or folded."""
        return tuple(row for row in self.rows if row.new is not None)

    @property
    def kept(self) -> tuple[ConvertedNorm, ...]:
        """The rows of norms that were left as they are; each note says why."""
        return tuple(row for row in self.rows if row.new is None)

    def __str__(self) -> str:
        plural = "" if len(self.rows) == 1 else "s"
        lines = [f"{len(self.rows)} norm{plural}: {len(self.replaced)} replaced, {len(self.kept)} left"]
        cells = [(row.name, str(row.channels or "?"), row.layout or "?", _change(row)) for row in self.rows]
        widths = [max((len(row[column]) for row in cells), default=0) for column in range(3)]
        lines += ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in cells]
        lines += [f"not reached: {call}" for call in self.not_reached]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _change(row: ConvertedNorm) -> str:
    change = f"{row.old} -> {row.new}" if row.new is not None else f"{row.old} left"
    return f"{change}: {row.note}" if row.note else change
