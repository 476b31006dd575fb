"""What an alarm is, and what a rule is that raises one. The rules are in the modules named after their themes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.alarms.sample import FloatArray, Sample

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm, of plain types only.

    Attributes:
        step: optimizer steps done when the sample was taken.
        epoch: epoch of that step.
        rule: name of the rule.
        layer: `label` of the first layer in forward order for which the rule fired.
        value: the figure that was out of range.
        threshold: the bound that it crossed.
        sentence: what was seen, with figures.
        remedy: what to try.

    Example:
        >>> Alarm(3, 0, "saturated", "act", 0.6, 0.5, "Much is saturated.", "Lower the rate.").as_dict()["value"]
        0.6
    """

    step: int
    epoch: int
    rule: str
    layer: str
    value: float
    threshold: float
    sentence: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in order."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule finds in one table, one entry a row.

    Attributes:
        value: the figure that is judged, NaN where the rule does not apply or the figure was not measured.
        bad: where it is out of range.
        threshold: the bound it is held against, one for all rows or one a row.
        say: what is wrong with one row: a clause that follows "at step 120, ", without a full stop.
    """

    value: FloatArray
    bad: BoolArray
    threshold: float | FloatArray
    say: Callable[[int], str]


@dataclass(frozen=True)
class Rule(ABC):
    """Judges every row of a table at once; counting samples is left to `Watch`.

    Attributes:
        patience: samples in a row of one layer and call that must be bad before the alarm is raised, and that must be
            good before it may be raised again, >= 1.
        warmup_samples: earlier samples of the layer and call that are not judged, >= 0.
        warmup_steps: optimizer steps since its first sample that are not judged, >= 0.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    remedy: ClassVar[str]
    together: ClassVar[str] = "; the same holds for {}"  # said when a rule fires for several keys at once

    patience: int = 1
    warmup_samples: int = 0
    warmup_steps: int = 0

    @abstractmethod
    def judge(self, sample: Sample) -> Verdict:
        """Judge every row of `sample`."""

    def patience_for(self, fp16_scaled: bool) -> int:
        """The patience in a run whose loss is scaled for float16, or is not."""
        return self.patience


def figure(value: float) -> str:
    """A number with three digits, and without an exponent where it can be read without one.

    Example:
        >>> figure(3291.4), figure(278123.0), figure(0.0456), figure(4.6e-06)
        ('3,290', '278,000', '0.0456', '4.6e-06')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if 1e3 <= abs(rounded) < 1e7 else f"{value:.3g}"
