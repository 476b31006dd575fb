"""Rules about single units: dead, saturated, constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ics_apps.probes.activations.alarms.alarm import Rule, Verdict
from ics_apps.probes.activations.alarms.rows import SHARES
from ics_apps.probes.activations.alarms.sample import Sample

_TWO_SIDED: Final = frozenset({"sigmoid", "tanh", "softsign", "hardsigmoid", "hardtanh"})
_FEW: Final = 8


@dataclass(frozen=True)
class DeadUnits(Rule):
    """Channels of an activation that have been 0 for 100 values in a row: a dead unit gets no gradient again.

    The usual bound is one half, but U-Nets without norms train well with 75 % of a bottleneck dead (ours). No warm-up:
    100 values are waited for anyway. Fewer than eight channels must all be dead: in a bottleneck of four, three often
    are. Softmax is exempt, its zeros are decisions.

    Attributes:
        threshold: share of the channels above which the rule is broken, in [0, 1].
    """

    name: ClassVar = "dead_units"
    meaning: ClassVar = "more than 90 % of the channels of an activation are 0 whatever the input"
    remedy: ClassVar = "Lower the learning rate, put a norm before the activation, or use leaky ReLU or GELU."

    patience: int = 2
    threshold: float = 0.9

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        dead, channels = sample["dead_channels"], sample["channels"]
        share = sample.share("dead_channels", sample.rows.is_kind("activation") & ~sample.rows.of_types(SHARES))

        def say(row: int) -> str:
            return (
                f"{dead[row]:.0f} of {channels[row]:.0f} channels of {sample.label(row)} are dead: 0 in each of the "
                "last 100 values read"
            )

        enough = (channels >= _FEW) | (dead == channels)
        return Verdict(share, (share > self.threshold) & enough, self.threshold, say)


@dataclass(frozen=True)
class Saturated(Rule):
    """Hidden activations whose derivative is below 5 % of its maximum at most values.

    Gates and outputs saturate when they are sure, which is right, so they are exempt (see `Rows.gates_and_outputs`). A
    lower tail alone (GELU, SiLU, ELU) works like the zeros of a ReLU, and sparse layers are healthy: a higher bar.

    Attributes:
        threshold: share of the values for sigmoid, tanh and their kin, in [0, 1].
        one_sided: share of the values for the others, in [0, 1].
    """

    name: ClassVar = "saturated"
    meaning: ClassVar = "most values of a hidden activation lie where its derivative is below 5 % of its maximum"
    remedy: ClassVar = "Put a norm before the activation, or lower the learning rate or the scale of the first weights."

    patience: int = 3
    threshold: float = 0.5
    one_sided: float = 0.9

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        rows = sample.rows
        applies = rows.is_kind("activation") & ~rows.gates_and_outputs
        share = np.where(applies, sample["saturated_fraction"], np.nan)
        limit = np.where(rows.of_types(_TWO_SIDED), self.threshold, self.one_sided)

        def say(row: int) -> str:
            return f"{100 * share[row]:.0f} % of the values of {sample.label(row)} lie where it is almost flat"

        return Verdict(share, share > limit, limit, say)


@dataclass(frozen=True)
class ConstantChannel(Rule):
    """Channels of convolutions, linear layers and hidden activations that hold one and the same non-zero value.

    Norms are exempt: a channel whose gamma was decayed to 0 is constant and healthy. So are gates and outputs.

    Attributes:
        threshold: share of the channels, in [0, 1]; a few filters that weight decay has emptied are no harm.
    """

    name: ClassVar = "constant_channel"
    meaning: ClassVar = "more than a quarter of a layer's channels have the same value, not 0, at every position"
    remedy: ClassVar = "See whether the layer's input is constant or its weights are 0, and lower weight decay if so."

    patience: int = 3
    threshold: float = 0.25

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        constant, channels = sample["constant_channels"], sample["channels"]
        applies = sample.rows.is_kind("conv", "linear", "activation") & ~sample.rows.gates_and_outputs
        share = sample.share("constant_channels", applies)

        def say(row: int) -> str:
            return (
                f"{constant[row]:.0f} of {channels[row]:.0f} channels of {sample.label(row)} hold one and the same "
                "value at every position"
            )

        return Verdict(share, share > self.threshold, self.threshold, say)
