"""Applies the rules to one table after the other and says when a rule has been broken for long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.alarms.alarm import Alarm, BoolArray, Rule, Verdict
from ics_apps.probes.alarms.choice import make_rules
from ics_apps.probes.alarms.memory import Memory
from ics_apps.probes.alarms.sample import Sample
from ics_apps.probes.alarms.scale import gradient_norm
from ics_apps.probes.columns import Table

_MOST: Final = 1000  # samples in a row that are counted


class Watch:
    """Counts bad samples for each rule and each (layer, tag, call).

    A rule fires for a key when its patience is reached, once; it may fire again after as many good samples in a row.
    All keys for which one rule fires at the same sample make one alarm, named after the first in forward order.

    Args:
        rules: the rules, None for all with their defaults.

    Example:
        >>> Watch(make_rules(["nonfinite"])).rules[0].name
        'nonfinite'

    Reference: ours.
    """

    def __init__(self, rules: Sequence[Rule] | None = None) -> None:
        self.rules = tuple(make_rules() if rules is None else rules)
        self._memory = Memory()
        # Samples in a row: bad ones count up from 0, good ones down from 0.
        self._counts = np.zeros((len(self.rules), 0), np.int16)
        self._ringing = np.zeros((len(self.rules), 0), np.bool_)

    def check(self, table: Table, step: int, epoch: int, fp16_scaled: bool = False) -> list[Alarm]:
        """Judge one table.

        Args:
            table: the monitor's table of one sampled step, of columns `ics_apps.probes.columns.COLUMNS`.
            step: optimizer steps done.
            epoch: epoch of that step.
            fp16_scaled: whether the loss is scaled for float16, so that steps with inf are skipped on purpose.

        Returns:
            The alarms raised by this table, in the order of the rules.
        """
        keys = list(zip(table["layer"].tolist(), table["tag"].tolist(), table["call"].tolist(), strict=True))
        if not keys or not self.rules:
            return []
        slots = self._memory.find(keys)
        self._memory.meet(slots, table, step)
        sample = Sample(table, step, self._memory, slots, fp16_scaled=fp16_scaled)
        with np.errstate(all="ignore"):
            verdicts = [rule.judge(sample) for rule in self.rules]
            fired = self._count(sample, slots, verdicts)
            alarms = [
                _alarm(self.rules[index], sample, verdicts[index], fired[index], epoch)
                for index in np.flatnonzero(fired.any(1)).tolist()
            ]
            figures = {name: sample[name] for name in ("running_gap", "running_var_gap", "drift_w1", "weight_norm")}
            self._memory.remember(slots, figures | {"gradient": gradient_norm(sample)})
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """Plain types only: loads under `weights_only=True`."""
        return {
            "memory": self._memory.state_dict(),
            "counts": {rule.name: row.tolist() for rule, row in zip(self.rules, self._counts, strict=True)},
            "ringing": {rule.name: row.tolist() for rule, row in zip(self.rules, self._ringing, strict=True)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; rules that were not watched then begin anew."""
        self._memory.load_state_dict(state["memory"])
        shape = (len(self.rules), len(self._memory.keys))
        self._counts, self._ringing = np.zeros(shape, np.int16), np.zeros(shape, np.bool_)
        for index, rule in enumerate(self.rules):
            if rule.name in state["counts"]:
                counts, ringing = state["counts"][rule.name], state["ringing"][rule.name]
                self._counts[index, : len(counts)], self._ringing[index, : len(ringing)] = counts, ringing

    def _count(self, sample: Sample, slots: NDArray[np.intp], verdicts: Sequence[Verdict]) -> BoolArray:
        """Which rules fire for which rows, `(rules, R)`."""
        new = ((0, 0), (0, len(self._memory.keys) - self._counts.shape[1]))
        if new[1][1]:
            self._counts, self._ringing = np.pad(self._counts, new), np.pad(self._ringing, new)
        patience = np.array([[rule.patience_for(sample)] for rule in self.rules])
        samples = np.array([[rule.warmup_samples] for rule in self.rules])
        steps = np.array([[rule.warmup_steps] for rule in self.rules])
        warm = (sample.remembered("age") >= samples) & (sample.step - sample.remembered("first_step") >= steps)
        bad = np.stack([verdict.bad for verdict in verdicts]) & warm
        good = ~np.isnan(np.stack([verdict.value for verdict in verdicts])) & warm & ~bad
        before, rings = self._counts[:, slots], self._ringing[:, slots]
        after = np.where(bad, np.maximum(before, 0) + 1, np.where(good, np.minimum(before, 0) - 1, before))
        self._counts[:, slots] = np.clip(after, -_MOST, _MOST)
        fired: BoolArray = bad & (after >= patience) & ~rings
        self._ringing[:, slots] = (rings | fired) & (after > -patience)
        return fired


def _alarm(rule: Rule, sample: Sample, verdict: Verdict, fired: BoolArray, epoch: int) -> Alarm:
    rows = [row for row in sample.forward_order.tolist() if fired[row]]
    first = rows[0]
    threshold = np.broadcast_to(verdict.threshold, fired.shape)[first]
    more = rule.together.format(len(rows) - 1) if len(rows) > 1 else ""
    patience = rule.patience_for(sample)
    lasting = f", in {patience} samples in a row" if patience > 1 else ""
    return Alarm(
        step=int(sample.step),
        epoch=int(epoch),
        rule=rule.name,
        layer=sample.label(first),
        value=float(verdict.value[first]),
        threshold=float(threshold),
        sentence=f"At step {sample.step}, {verdict.say(first)}{lasting}{more}.",
        remedy=rule.remedy,
    )
