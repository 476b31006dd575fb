"""Applies the rules to one table after the other and says when a rule has been broken for long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ics_apps.probes.activations.alarms.alarm import Alarm, BoolArray, Rule, Verdict
from ics_apps.probes.activations.alarms.choice import make_rules
from ics_apps.probes.activations.alarms.memory import Memory
from ics_apps.probes.activations.alarms.rows import Rows
from ics_apps.probes.activations.alarms.sample import Sample
from ics_apps.probes.activations.columns import Table

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
        self._rows: Rows | None = None
        self._slots = np.empty(0, np.intp)  # where the memory has each of the rows
        self._steps: list[int] = []  # of the last samples, as many as the longest patience
        self._patience = [np.array([[rule.patience_for(scaled)] for rule in self.rules]) for scaled in (False, True)]
        self._warmup_samples = np.array([[rule.warmup_samples] for rule in self.rules])
        self._warmup_steps = np.array([[rule.warmup_steps] for rule in self.rules])
        # Samples in a row: bad ones count up from 0, good ones down from 0.
        self._counts = np.zeros((len(self.rules), 0), np.int16)
        self._ringing = np.zeros((len(self.rules), 0), np.bool_)

    def check(self, table: Table, step: int, epoch: int, fp16_scaled: bool = False) -> list[Alarm]:
        """Judge one table.

        Args:
            table: the monitor's table of one sampled step, of columns `ics_apps.probes.activations.columns.COLUMNS`.
            step: optimizer steps done.
            epoch: epoch of that step.
            fp16_scaled: whether the loss is scaled for float16, so that steps with inf are skipped on purpose.

        Returns:
            The alarms raised by this table, in the order of the rules.
        """
        if self._rows is None or not self._rows.fit(table):
            self._rows = Rows(table)
            self._slots = self._memory.find(self._rows.keys)
        if not len(self._rows) or not self.rules:
            return []
        slots, patience = self._slots, self._patience[bool(fp16_scaled)]
        self._memory.meet(slots, table, step)
        sample = Sample(table, self._rows, step, self._memory, slots)
        self._steps = [*self._steps, int(step)][-int(patience.max()) :]
        with np.errstate(all="ignore"):
            verdicts = [rule.judge(sample) for rule in self.rules]
            fired = self._count(sample, verdicts, patience)
            alarms = [
                self._alarm(self.rules[index], sample, verdicts[index], fired[index], int(patience[index, 0]), epoch)
                for index in np.flatnonzero(fired.any(1)).tolist()
            ]
            figures = {name: sample[name] for name in ("running_gap", "running_var_gap", "drift_w1", "weight_norm")}
            self._memory.remember(slots, figures | {"gradient": sample.gradient})
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """Plain types only: loads under `weights_only=True`."""
        return {
            "memory": self._memory.state_dict(),
            "steps": list(self._steps),
            "counts": {rule.name: row.tolist() for rule, row in zip(self.rules, self._counts, strict=True)},
            "ringing": {rule.name: row.tolist() for rule, row in zip(self.rules, self._ringing, strict=True)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; rules that were not watched then begin anew."""
        self._memory.load_state_dict(state["memory"])
        self._rows = None
        self._steps = list(state["steps"])
        shape = (len(self.rules), len(self._memory.keys))
        self._counts, self._ringing = np.zeros(shape, np.int16), np.zeros(shape, np.bool_)
        for index, rule in enumerate(self.rules):
            if rule.name in state["counts"]:
                counts, ringing = state["counts"][rule.name], state["ringing"][rule.name]
                self._counts[index, : len(counts)], self._ringing[index, : len(ringing)] = counts, ringing

    def _count(self, sample: Sample, verdicts: Sequence[Verdict], patience: NDArray[np.int_]) -> BoolArray:
        """Which rules fire for which rows, `(rules, R)`."""
        new = ((0, 0), (0, len(self._memory.keys) - self._counts.shape[1]))
        if new[1][1]:
            self._counts, self._ringing = np.pad(self._counts, new), np.pad(self._ringing, new)
        steps = sample.step - sample.remembered("first_step")
        warm = (sample.remembered("age") >= self._warmup_samples) & (steps >= self._warmup_steps)
        # np.stack takes three times as long.
        bad = np.concatenate([verdict.bad for verdict in verdicts]).reshape(warm.shape) & warm
        value = np.concatenate([verdict.value for verdict in verdicts]).reshape(warm.shape)
        good = ~np.isnan(value) & warm & ~bad
        slots = self._slots
        before, rings = self._counts[:, slots], self._ringing[:, slots]
        after = np.where(bad, np.maximum(before, 0) + 1, np.where(good, np.minimum(before, 0) - 1, before))
        self._counts[:, slots] = np.maximum(np.minimum(after, _MOST), -_MOST)
        fired: BoolArray = bad & (after >= patience) & ~rings
        self._ringing[:, slots] = (rings | fired) & (after > -patience)
        return fired

    def _alarm(
        self, rule: Rule, sample: Sample, verdict: Verdict, fired: BoolArray, patience: int, epoch: int
    ) -> Alarm:
        rows = [row for row in sample.rows.forward_order if fired[row]]
        first = rows[0]
        threshold = np.broadcast_to(verdict.threshold, fired.shape)[first]
        since = f", as in every sample since step {self._steps[-patience:][0]}" if patience > 1 else ""
        others = len(rows) - 1
        more = rule.together.format(f"{others} more layer{'s' * (others > 1)}") if others else ""
        return Alarm(
            step=int(sample.step),
            epoch=int(epoch),
            rule=rule.name,
            layer=sample.label(first),
            value=float(verdict.value[first]),
            threshold=float(threshold),
            sentence=f"At step {sample.step}, {verdict.say(first)}{since}{more}.",
            remedy=rule.remedy,
        )
