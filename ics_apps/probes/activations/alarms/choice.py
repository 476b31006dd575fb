"""Which rules to use, from the plain data of a callback's option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from ics_apps.nearest import did_you_mean
from ics_apps.probes.activations.alarms.alarm import Rule
from ics_apps.probes.activations.alarms.scale import (
    ExplodingActivation,
    ExplodingGradient,
    StreamMismatch,
    VanishingActivation,
    VanishingGradient,
)
from ics_apps.probes.activations.alarms.statistics import RunningStatistics, SmallBatch
from ics_apps.probes.activations.alarms.training import DriftSpike, Nonfinite, UpdateRatio
from ics_apps.probes.activations.alarms.units import ConstantChannel, DeadUnits, Saturated

_RULES: Final[dict[str, type[Rule]]] = {
    rule.name: rule
    for rule in (
        DeadUnits,
        Saturated,
        ExplodingActivation,
        VanishingActivation,
        ExplodingGradient,
        VanishingGradient,
        Nonfinite,
        DriftSpike,
        RunningStatistics,
        SmallBatch,
        ConstantChannel,
        UpdateRatio,
        StreamMismatch,
    )
}
RULE_NAMES: Final = tuple(_RULES)
_WHOLE: Final = ("patience", "warmup_samples", "warmup_steps")

RuleChoice = str | Sequence[str] | Mapping[str, Mapping[str, float] | None] | None


def make_rules(choice: RuleChoice = None) -> tuple[Rule, ...]:
    """The rules to watch with.

    Args:
        choice: None for all; names; or names with options, `{"dead_units": {"threshold": 0.3, "patience": 5}}` (None or
            {} for the defaults). An empty choice means none.

    Returns:
        One rule a name, in the order of `RULE_NAMES`.

    Raises:
        ValueError: an unknown rule or option, or a value out of range.

    Example:
        >>> [rule.name for rule in make_rules(["nonfinite", "dead_units"])]
        ['dead_units', 'nonfinite']
        >>> make_rules({"dead_units": {"threshold": 0.3}})[0].threshold
        0.3
    """
    if choice is None:
        return tuple(rule() for rule in _RULES.values())
    names = [choice] if isinstance(choice, str) else list(choice)
    options = choice if isinstance(choice, Mapping) else {}
    for name in names:
        if name not in _RULES:
            known = ", ".join(RULE_NAMES)
            raise ValueError(
                f"alarms: there is no rule {name!r}{did_you_mean(str(name), RULE_NAMES)} Rules are: {known}."
            )
    return tuple(_with_options(rule(), options.get(name) or {}) for name, rule in _RULES.items() if name in names)


def _with_options(rule: Rule, options: Any) -> Rule:
    if not isinstance(options, Mapping):
        raise ValueError(f"alarms: rule {rule.name!r} takes a mapping of options, not {options!r}.")
    known = [field.name for field in fields(rule)]
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f"alarms: rule {rule.name!r} has no option {name!r}{did_you_mean(str(name), known)} It takes: "
                f"{', '.join(known)}."
            )
        _check(rule.name, name, value)
    return replace(rule, **options)


def _check(rule: str, name: str, value: Any) -> None:
    least = 1 if name == "patience" else 0
    whole = name in _WHOLE
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and value >= least
    if not right:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"alarms: {name} of rule {rule!r} is {value!r}; give {kind}, at least {least}.")
