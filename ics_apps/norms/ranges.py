"""Range checks of the options that several norms share. Free of torch; types are checked by the registry."""

from __future__ import annotations

from ics_apps.norms.registry import NormError


def check_eps(eps: float | None) -> None:
    """Refuse an eps that is not positive; None stands for the smallest step of the input's number format."""
    if eps is not None and not eps > 0:
        raise NormError(f"eps must be positive, got {eps}")


def check_momentum(momentum: float | None) -> None:
    """Refuse a momentum outside [0, 1]; it is the weight of the NEW batch, as in torch."""
    if momentum is not None and not 0 <= momentum <= 1:
        raise NormError(
            f"momentum is the weight of the new batch and lies in [0, 1], got {momentum}; "
            "a Keras or Flax momentum m is 1 - m here"
        )


def check_groups(channels: int, num_groups: int) -> None:
    """Refuse a number of groups that does not divide the channels, naming the nearest that do."""
    if num_groups < 1:
        raise NormError(f"num_groups must be at least 1, got {num_groups}")
    if channels % num_groups:
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        below = max(n for n in divisors if n < num_groups)
        above = min((n for n in divisors if n > num_groups), default=None)
        nearest = f"{below} or {above}" if above else f"{below}"
        raise NormError(f"{channels} channels cannot be split into {num_groups} equal groups; use num_groups {nearest}")


def check_not_negative(**values: float) -> None:
    """Refuse negative widths of a distribution."""
    for name, value in values.items():
        if value < 0:
            raise NormError(f"{name} must not be negative, got {value}")


def check_at_least(least: float, **values: float) -> None:
    """Refuse values below the least allowed one."""
    for name, value in values.items():
        if value < least:
            raise NormError(f"{name} must be at least {least}, got {value}")
