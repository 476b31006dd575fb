"""Checks of the arguments of nets, with the error sentences that they share."""

from __future__ import annotations


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that is none of those allowed.

    Raises:
        ValueError: It is none.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_positive(**values: int) -> None:
    """Refuse values that are no integers of at least 1.

    Raises:
        ValueError: One is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
