"""What the monitor's alarms lead to: a line on the screen, a line in a file, the end of training.

The rules are in `ics_apps.probes.activations.alarms`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ics_apps.callbacks.alarm_file import AlarmFile
from ics_apps.probes.activations.alarms import Alarm, Watch, make_rules
from ics_apps.probes.activations.columns import Table

OnAlarm = Literal["warn", "log", "stop"]
AlarmChoice = Sequence[str] | Mapping[str, Mapping[str, float]]

ON_ALARM: Final = ("warn", "log", "stop")
MOST_MESSAGES: Final = 3  # lines on the screen a rule; the file has all


class MonitorAlarms:
    """Judges each table, and says and writes what it finds.

    Args:
        choice: which rules, see `probes.alarms.make_rules`.
        on_alarm: `log` writes to the file and the loggers, `warn` also warns, `stop` also ends training.

    Raises:
        ValueError: an unknown rule, threshold or `on_alarm`.
    """

    def __init__(self, choice: AlarmChoice | None, on_alarm: OnAlarm) -> None:
        if on_alarm not in ON_ALARM:
            raise ValueError(f"on_alarm is {on_alarm!r}; allowed are {', '.join(ON_ALARM)}.")
        self.on_alarm = on_alarm
        self._rules = make_rules(choice)
        self._watch = Watch(self._rules)
        self._said: Counter[str] = Counter()
        self._file: AlarmFile | None = None

    def forget(self) -> None:
        """Begin a new run."""
        self._watch = Watch(self._rules)
        self._said.clear()

    def open(self, folder: Path, step: int) -> None:
        """Write to `folder` from now on, after the alarms of earlier steps."""
        self._file = AlarmFile(folder)
        self._file.drop_from(step)

    def close(self) -> None:
        """Write to no file from now on."""
        self._file = None

    def check(self, trainer: Trainer, table: Table, step: int, epoch: int, is_scaled: bool) -> dict[str, float]:
        """Judge one table, on every rank alike, and act; the file is open on rank zero only.

        Returns:
            Scalars for the loggers: the value by which each rule fired.
        """
        alarms = self._watch.check(table, step, epoch, fp16_scaled=is_scaled)
        if not alarms:
            return {}
        if self._file is not None:
            self._file.add([alarm.as_dict() for alarm in alarms])
        if self.on_alarm != "log":
            for alarm in alarms:
                self._say(alarm)
        if self.on_alarm == "stop":
            trainer.should_stop = True
            rank_zero_warn(f"ActivationMonitor stops training at step {step}, since on_alarm is 'stop'.")
        return {f"monitor/alarms/{alarm.rule}": alarm.value for alarm in alarms}

    def state_dict(self) -> dict[str, Any]:
        """What the rules remember; loads under `weights_only=True`."""
        return {"watch": self._watch.state_dict(), "said": dict(self._said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._watch.load_state_dict(state["watch"])
        self._said = Counter(state["said"])

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the memory, not the file."""
        return {**self.__dict__, "_file": None}

    def _say(self, alarm: Alarm) -> None:
        self._said[alarm.rule] += 1
        if self._said[alarm.rule] <= MOST_MESSAGES:
            last = " Further ones are only in the file." if self._said[alarm.rule] == MOST_MESSAGES else ""
            rank_zero_warn(f"ActivationMonitor ({alarm.rule}): {alarm.sentence} {alarm.remedy}{last}")
