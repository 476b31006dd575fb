"""Rules about how training goes: values that are not finite, updates of the wrong size, sudden drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ics_apps.probes.activations.alarms.alarm import Rule, Verdict, figure
from ics_apps.probes.activations.alarms.memory import medians
from ics_apps.probes.activations.alarms.rows import SHARES
from ics_apps.probes.activations.alarms.sample import FloatArray, Sample

_ENOUGH: Final = 10  # earlier samples without which a history says nothing
_SUDDEN: Final = 2.0  # times the drift of the sample before
_NULL: Final = 1.8  # Wasserstein-1 of two samples of n values of one normal law is 1.8 sigma / sqrt(n)


@dataclass(frozen=True)
class Nonfinite(Rule):
    """Outputs that are NaN or infinite, named at the first layer in forward order.

    A gradient scaler for float16 skips steps that overflow, on purpose, so three samples in a row are waited for then.

    Attributes:
        threshold: values not finite that are allowed.
    """

    name: ClassVar = "nonfinite"
    meaning: ClassVar = "an output holds values that are NaN or infinite"
    together: ClassVar = ""
    remedy: ClassVar = (
        "Lower the learning rate, clip gradients, and look for a log, a square root or a division by 0 before this "
        "layer; with float16 try bfloat16."
    )

    patience: int = 1
    threshold: float = 0.0

    def patience_for(self, fp16_scaled: bool) -> int:
        """At least three while a scaler skips steps."""
        return max(self.patience, 3) if fp16_scaled else self.patience

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        value = sample["nonfinite_count"]
        bad = value > self.threshold
        broken = sample.remembered("had_weight") & ~np.isfinite(sample["weight_norm"])

        def say(row: int) -> str:
            order = np.array(sample.rows.order)
            later = len(np.unique(order[bad & (order > order[row])]))
            return "".join(
                (
                    f"{value[row]:.0f} of {sample['count'][row]:.0f} values of {sample.label(row)} are NaN or infinite",
                    f", and so it goes on in {later} layer{'s' * (later > 1)} after it" if later else "",
                    "; its weights are not finite: an update broke it, not this forward" if broken[row] else "",
                )
            )

        return Verdict(value, bad, self.threshold, say)


@dataclass(frozen=True)
class DriftSpike(Rule):
    """A Wasserstein-1 drift far above the layer's own history.

    Spike: above exp(median + 6 MAD) of the logarithms of its last 32 drifts, above five times their median, above twice
    the last one, above 0.5 standard deviations, and above five times what two samples of one law show by chance,
    1.8 / sqrt(n). Logarithms, because drift falls over orders of magnitude as training settles; the last one, because a
    net that leaves a plateau moves faster from sample to sample, and no single sample stands out. Needs ten earlier
    samples. Softmax is exempt: it begins almost uniform, so that its standard deviation is no measure.

    Other data show in the first layer, which no other layer can hide or cause, a jump of all weights in many layers. A
    few later layers that move alone are no alarm: so do new features, and the logits of a GAN's discriminator (ours).

    Attributes:
        threshold: median absolute deviations (of the logarithm) above the median.
        floor: drift below which nothing is a spike, in standard deviations.
        times: factor above the median.
        share: of the layers that must spike at once if the first does not; a third of them are convolutions where each
            has a norm and an activation behind, which hide a jump of the weights.
    """

    name: ClassVar = "drift_spike"
    meaning: ClassVar = "the first layer's outputs, or a quarter of all, moved far more than in the 32 samples before"
    together: ClassVar = "; {} moved at once, so it is the data or the learning rate"
    remedy: ClassVar = "Look at the learning rate and the data of this step; if the loss jumped too, lower the rate."

    warmup_samples: int = _ENOUGH
    threshold: float = 6.0
    floor: float = 0.5
    times: float = 5.0
    share: float = 0.25

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        drift = sample["drift_w1"]
        value = np.where(np.isfinite(drift) & ~sample.rows.of_types(SHARES), drift, np.nan)
        floor = np.maximum(self.floor, self.times * _NULL / np.sqrt(np.maximum(sample["count"], 1)))
        limit, old = floor, sample.remembered("age") >= self.warmup_samples
        candidates = np.flatnonzero((value > floor) & old)
        if len(candidates):
            limit = floor.copy()
            limit[candidates] = self._limits(sample.remembered("drifts")[candidates], floor[candidates])
        bad = (value > limit) & (value > _SUDDEN * self._last(sample)) & old
        if bad.any() and bad.sum() < self.share * (~np.isnan(value)).sum():
            bad &= sample.rows.inputs

        def say(row: int) -> str:
            return (
                f"the outputs of {sample.label(row)} moved by {figure(value[row])} standard deviations since the "
                f"sample before, where {limit[row]:.2g} is the most to be expected"
            )

        return Verdict(value, bad, limit, say)

    def _last(self, sample: Sample) -> FloatArray:
        """The drift of the sample before, 0 where there was none."""
        drifts, age = sample.remembered("drifts"), sample.remembered("age").astype(np.int64)
        last: FloatArray = np.nan_to_num(drifts[np.arange(len(drifts)), (age - 1) % drifts.shape[1]])
        return last

    def _limits(self, history: FloatArray, floor: FloatArray) -> FloatArray:
        logs = np.where(history > 0, np.log(history), np.nan)
        middle = medians(logs)
        spread = medians(np.abs(logs - middle[:, None]))
        limits = np.maximum(np.exp(middle + self.threshold * spread), self.times * np.exp(middle))
        known = (~np.isnan(logs)).sum(1) >= _ENOUGH - 1  # the first sample has no drift
        return np.where(known, np.maximum(floor, limits), np.inf)


@dataclass(frozen=True)
class UpdateRatio(Rule):
    """Steps far too large or far too small for the weights of a convolution or linear layer.

    ||w_after - w_before|| / ||w_before|| should be near 1e-3 (CS231n). Norms are exempt, since a gamma may begin at 0
    or be decayed to it; so are weights of norm 0 and weights that did not move at all, which are frozen. Too small is
    said only while the median layer moves by ten times the bound, and a hundred times more than the layer: at the end
    of a schedule all rates are near 0 on purpose.
    Warm-up of 100 steps: Adam's first steps are large, and weights that begin near 0 still grow.

    Attributes:
        low: smallest good ratio.
        high: largest good ratio.
    """

    name: ClassVar = "update_ratio"
    meaning: ClassVar = "a step changes a layer's weights by more than 1/10 or by less than 1/100,000 of their norm"
    remedy: ClassVar = "Raise or lower the learning rate of this layer, or let it warm up; about 1/1,000 is usual."

    patience: int = 3
    warmup_steps: int = 100
    low: float = 1e-5
    high: float = 0.1

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        ratio = sample["update_ratio"]
        applies = sample.rows.is_kind("conv", "linear") & np.isfinite(ratio) & (ratio > 0)
        value = np.where(applies, ratio, np.nan)
        low = value < self.low
        if low.any():
            usual = float(np.median(value[applies]))
            low &= (usual >= 10 * self.low) & (value < usual / 100)
        bad = low | (value > self.high)

        def say(row: int) -> str:
            least = ", while others are changed far more" if low[row] else ""
            return f"a step changes the weights of {sample.label(row)} by {value[row]:.2g} of their norm{least}"

        return Verdict(value, bad, np.where(low, self.low, self.high), say)
