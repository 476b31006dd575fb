"""Rules about batch statistics: those that evaluation will use, and those too noisy to train with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ics_apps.probes.activations.alarms.alarm import Rule, Verdict, figure
from ics_apps.probes.activations.alarms.sample import Sample


@dataclass(frozen=True)
class RunningStatistics(Rule):
    """Running statistics unlike those of the batch, so that evaluation sees another net than training.

    Broken if the gap of the means is above 0.5 running standard deviations and above 3 times the noise of the batch's
    mean, or the gap of the variances above ln 4 and above 3 sqrt(2) times it. Warm-up of 50 steps and 3 samples, and
    while a gap is still the least so far it is not held against the layer: with a small momentum the statistics are on
    their way for 3/momentum steps. A layer that runs on several batches a step (real and fake, or accumulation) has one
    set of statistics for all of them, so its bounds are doubled.

    Attributes:
        threshold: gap of the means, in running standard deviations.
        variance: gap of the variances, in natural logarithms.
        noise: times the batch's own noise.
    """

    name: ClassVar = "running_statistics"
    meaning: ClassVar = "batch and running statistics disagree, so evaluation sees another net than training"
    remedy: ClassVar = (
        "Let every forward see the same mix of data, raise the norm's momentum, re-estimate the statistics after "
        "training, or use group norm."
    )

    patience: int = 3
    warmup_samples: int = 3
    warmup_steps: int = 50
    threshold: float = 0.5
    variance: float = math.log(4)
    noise: float = 3.0

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        gap, spread = sample["running_gap"], sample["running_var_gap"]
        noise = np.fmax(self.noise * sample["batch_noise"], 0.0)
        several = np.where(sample.rows.often, 2.0, 1.0)
        mean_limit = np.maximum(self.threshold * several, noise)
        variance_limit = np.maximum(self.variance * several, math.sqrt(2) * noise)
        shifted = (gap > mean_limit) & (gap > sample.remembered("least_gap"))
        scaled = (spread > variance_limit) & (spread > sample.remembered("least_var_gap")) & ~shifted
        value = np.where(scaled, spread, gap)

        def say(row: int) -> str:
            if scaled[row]:
                return (
                    f"the running variance of {sample.label(row)} is off by a factor of "
                    f"{figure(math.exp(min(spread[row], 80)))} against the batch"
                )
            return (
                f"the running mean of {sample.label(row)} is {gap[row]:.2g} standard deviations away from the mean of "
                "the batch"
            )

        return Verdict(value, shifted | scaled, np.where(scaled, variance_limit, mean_limit), say)


@dataclass(frozen=True)
class SmallBatch(Rule):
    """Batch statistics too noisy to normalise with.

    batch_noise = sqrt(1 / m_eff), where m_eff is the number of independent values behind a mean. The bound is that of
    just below 8: on ImageNet batch norm loses 1 % of accuracy at 8 images and 4 % at 4 (Wu and He 2018, Table 2). The
    noise of 16, 0.25, would warn of batches of 16 in every layer with one position, which train well. No warm-up.

    Attributes:
        threshold: sd(batch mean) / sigma.
    """

    name: ClassVar = "small_batch"
    meaning: ClassVar = "a norm's batch mean is as noisy as that of fewer than 8 independent values"
    remedy: ClassVar = "Use group norm, synchronise the norm over processes, or raise the batch size."

    patience: int = 3
    threshold: float = 0.36

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        value = sample["batch_noise"]

        def say(row: int) -> str:
            return (
                f"the batch mean of {sample.label(row)} is as noisy as that of only {max(value[row], 1e-9) ** -2:.1f} "
                f"independent values ({value[row]:.2g} standard deviations)"
            )

        return Verdict(value, value > self.threshold, self.threshold, say)
