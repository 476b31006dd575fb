"""Rules about single units: dead, saturated, constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ics_apps.probes.alarms.alarm import BoolArray, Rule, Verdict
from ics_apps.probes.alarms.sample import Sample

_TWO_SIDED: Final = frozenset({"sigmoid", "tanh", "softsign", "hardsigmoid", "hardtanh"})
_FEW: Final = 8
SHARES: Final = frozenset({"softmax", "softmax2d", "softmin", "logsoftmax"})  # zeros here are answers, not deaths


@dataclass(frozen=True)
class DeadUnits(Rule):
    """Channels of an activation that have been 0 for 100 values in a row: a dead unit gets no gradient again.

    The usual bound is one half, but U-Nets without norms train well with 56 % (ours). No warm-up: 100 values are waited
    for anyway. Fewer than eight channels must all be dead: in a bottleneck of four, three often are. Softmax is exempt,
    its zeros are decisions.

    Attributes:
        threshold: share of the channels above which the rule is broken, in [0, 1].
    """

    name: ClassVar = "dead_units"
    meaning: ClassVar = "more than 70 % of the channels of an activation are 0 whatever the input"
    remedy: ClassVar = "Lower the learning rate, put a norm before the activation, or use leaky ReLU or GELU."

    patience: int = 2
    threshold: float = 0.7

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        dead, channels = sample["dead_channels"], sample["channels"]
        applies = sample.is_kind("activation") & (dead >= 0) & (channels > 0) & ~of_types(sample, SHARES)
        share = np.where(applies, dead / np.maximum(channels, 1), np.nan)

        def say(row: int) -> str:
            return (
                f"{dead[row]:.0f} of {channels[row]:.0f} channels of {sample.label(row)} have been 0 at "
                "the last 100 values read or more"
            )

        enough = (channels >= _FEW) | (dead == channels)
        return Verdict(share, (share > self.threshold) & enough, self.threshold, say)


@dataclass(frozen=True)
class Saturated(Rule):
    """Hidden activations whose derivative is below 5 % of its maximum at most values.

    Gates and outputs saturate when they are sure, which is right, so they are exempt (see `gates_and_outputs`). A
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
        share = np.where(sample.is_kind("activation"), sample["saturated_fraction"], np.nan)
        limit = np.where(of_types(sample, _TWO_SIDED), self.threshold, self.one_sided)
        high = share > limit
        if high.any():
            share = np.where(gates_and_outputs(sample), np.nan, share)

        def say(row: int) -> str:
            return f"{share[row]:.0%} of the values of {sample.label(row)} are saturated"

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
        applies = sample.is_kind("conv", "linear", "activation") & (constant >= 0) & (channels > 0)
        share = np.where(applies, constant / np.maximum(channels, 1), np.nan)
        if (share > self.threshold).any():
            share = np.where(gates_and_outputs(sample), np.nan, share)

        def say(row: int) -> str:
            return (
                f"{constant[row]:.0f} of {channels[row]:.0f} channels of {sample.label(row)} hold one and the same "
                "value at every position"
            )

        return Verdict(share, share > self.threshold, self.threshold, say)


def gates_and_outputs(sample: Sample) -> BoolArray:
    """Activations that are most likely a gate or the output of a net, judged from the layers beside them.

    An activation is one if no layer follows it, or if it comes after an activation and is of another type than the next
    one, or than the one before it where none follows: the sigmoid of a squeeze-and-excitation block among SiLUs, the
    tanh of a generator before the leaky ReLUs of its discriminator. The first activation never is.

    Args:
        sample: the table.

    Returns:
        `(R,)`, False for other kinds of layer.
    """
    orders, types = sample.table["order"].tolist(), sample.table["type"].tolist()
    last = max(orders, default=0)
    kind = {order: types[row].lower() for row, order in enumerate(orders) if sample.kind[row] == "activation"}
    sequence = sorted(order for order, type_ in kind.items() if type_ not in SHARES)
    exempt = {last}
    for index, order in enumerate(sequence[1:], start=1):
        beside = sequence[index + 1] if index + 1 < len(sequence) else sequence[index - 1]
        if kind[beside] != kind[order]:
            exempt.add(order)
    return np.array([order in exempt and order in kind for order in orders], bool)


def of_types(sample: Sample, names: frozenset[str]) -> BoolArray:
    """Which rows are of a class with one of the names, which are in lower case."""
    return np.array([type_.lower() in names for type_ in sample.table["type"].tolist()], bool)
