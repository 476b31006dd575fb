"""Rules about sizes: of activations and gradients over time and over depth, and of streams that meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ics_apps.probes.activations.alarms.alarm import Rule, Verdict, figure
from ics_apps.probes.activations.alarms.memory import EARLY, medians
from ics_apps.probes.activations.alarms.sample import FloatArray, Sample

_HALF_MAX: Final = 65504.0
# Gradients below this are those of a loss that is as good as 0, and begin to round to 0 in float16.
_NO_LOSS: Final = 1e-8


@dataclass(frozen=True)
class ExplodingActivation(Rule):
    """An output far above what the net began with, near the end of float16, or growing from layer to layer.

    The measure is the largest RMS of any layer in its first sample, not a layer's own: branches and heads that begin
    near 0 grow by thousands in healthy runs. A residual net without norms settles at 200 times that measure when its
    classes are easy to separate (ours), a run that diverges does not settle. The ratio over depth takes the largest RMS
    of the first and the last third of the layers of one pass. A net's output, the last layer of a pass, is as large as
    its targets, which may be prices in thousands: for it only the end of float16 counts. No warm-up, since a net may
    begin broken.

    Attributes:
        threshold: RMS over the largest first RMS.
        depth: RMS of the last over that of the first layers.
        half: share of float16's maximum, for float16 only.
    """

    name: ClassVar = "exploding_activation"
    meaning: ClassVar = "outputs are 1,000 times above the start, grow 10,000 times over depth, or near float16's end"
    remedy: ClassVar = "Lower the learning rate or the scale of the first weights, or put norms between the layers."

    patience: int = 2
    threshold: float = 1e3
    depth: float = 1e4
    half: float = 0.1

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        rms = sample["rms"]
        start = _largest(sample.remembered("first_rms"))
        inner = np.where(sample.rows.outputs, np.nan, rms)
        value = inner / start if start > 0 else np.full(len(sample), np.nan)
        bad = value > self.threshold
        limit = np.full(len(sample), self.threshold)
        near_end = np.zeros(len(sample), bool)
        peak = np.fmax(np.abs(sample["min"]), np.abs(sample["max"]))
        if sample.rows.half.any():
            near_end = sample.rows.half & (peak > self.half * _HALF_MAX)
            value, limit = np.where(near_end, peak, value), np.where(near_end, self.half * _HALF_MAX, limit)
        deep = np.zeros(len(sample), bool)
        for row, first, last in sample.ends(inner):
            if first > 0 and last > self.depth * first and not bad[row]:
                deep[row], value[row], limit[row] = True, last / first, self.depth

        def say(row: int) -> str:
            if deep[row]:
                return f"outputs grow {figure(value[row])} times from {sample.label(row)} to the last layers"
            if near_end[row]:
                return f"{sample.label(row)} reaches {figure(peak[row])} in float16, which ends at 65504"
            times = f"{figure(value[row])} times that of any layer in the first sample"
            return f"the RMS of {sample.label(row)} is {figure(rms[row])}, which is {times}"

        return Verdict(value, bad | near_end | deep, limit, say)


@dataclass(frozen=True)
class VanishingActivation(Rule):
    """An output that has shrunk to almost nothing, or shrinks from layer to layer.

    A layer is held against its own first sample, and against the largest of its net now, so that a batch of small
    inputs is no alarm. Layers that begin at exactly 0 have no measure. Depth is taken without the output of the net,
    where a bias alone makes up for all that has vanished. No warm-up, since a net may begin broken.

    Attributes:
        threshold: RMS over the layer's first RMS.
        depth: RMS of the last over that of the first layers.
    """

    name: ClassVar = "vanishing_activation"
    meaning: ClassVar = "an output is 1,000 times below its start, or outputs shrink 10,000 times over depth"
    remedy: ClassVar = "Put norms between the layers, use He initialisation, or lower weight decay."

    patience: int = 3
    threshold: float = 1e-3
    depth: float = 1e-4

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        rms, first_rms = sample["rms"], sample.remembered("first_rms")
        value = np.where(first_rms > 0, rms / np.where(first_rms > 0, first_rms, 1), np.nan)
        bad = (value < self.threshold) & (rms < self.threshold * _largest(rms))
        limit = np.full(len(sample), self.threshold)
        deep = np.zeros(len(sample), bool)
        for row, first, last in sample.ends(np.where((rms > 0) & ~sample.rows.outputs, rms, np.nan)):
            if last < self.depth * first and not bad[row]:
                deep[row], value[row], limit[row] = True, last / first, self.depth

        def say(row: int) -> str:
            if deep[row]:
                return f"outputs shrink to {value[row]:.2g} of their size from {sample.label(row)} to the last layers"
            if rms[row] == 0:
                return f"all values of {sample.label(row)} are 0"
            return f"the RMS of {sample.label(row)} is {rms[row]:.2g}, {value[row]:.2g} of that in its first sample"

        return Verdict(value, bad | deep, limit, say)


@dataclass(frozen=True)
class ExplodingGradient(Rule):
    """Gradients that grow towards the first layers, or jump far above all that a layer has had.

    Figures are Euclidean norms, grad_rms * sqrt(numel): a mean loss over more positions has smaller elements, not a
    smaller norm. A jump needs ten earlier samples, and must exceed ten times all that any layer had in its first ten:
    once data are memorised, a single hard sample is a thousand times the median and harmless, and branches that begin
    near 0 grow.

    Attributes:
        threshold: norm over the median of the layer's last 32 samples.
        depth: largest norm in the first third of the layers over that in the last third.
        early: norm over the largest of all layers' first ten samples.
    """

    name: ClassVar = "exploding_gradient"
    meaning: ClassVar = "the gradient is 10,000 times larger in the first layers, or 100 times above a layer's median"
    remedy: ClassVar = "Clip gradients, lower the learning rate, or put norms between the layers."

    patience: int = 2
    threshold: float = 100.0
    depth: float = 1e4
    early: float = 10.0

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        norm = sample.gradient
        early = _largest(sample.remembered("early_gradient"))
        high = (norm > self.early * early) & (early > 0) & (sample.remembered("age") >= EARLY)
        value = np.where(np.isnan(norm), np.nan, 0.0)
        if high.any():
            value = norm / np.maximum(medians(sample.remembered("gradients")), _NO_LOSS)
        bad = high & (value > self.threshold)
        limit, deep = np.full(len(sample), self.threshold), np.zeros(len(sample), bool)
        for row, first, last in sample.ends(norm):
            if last > _NO_LOSS and first > self.depth * last and not bad[row]:
                deep[row], value[row], limit[row] = True, first / last, self.depth

        def say(row: int) -> str:
            if deep[row]:
                return f"the gradient grows {figure(value[row])} times from the last layers back to {sample.label(row)}"
            times = f"{figure(value[row])} times its median over the samples before"
            return f"the norm of the gradient at {sample.label(row)} is {figure(norm[row])}, which is {times}"

        return Verdict(value, bad | deep, limit, say)


@dataclass(frozen=True)
class VanishingGradient(Rule):
    """Gradients that die out on the way to the first layers.

    Only the ratio counts, so a loss that goes to 0, and all gradients with it, is no alarm. Norms as in
    `ExplodingGradient`. No warm-up beyond patience: a last layer that begins at 0 passes nothing in the first step.

    Attributes:
        threshold: largest norm in the first third of the layers over that in the last third.
    """

    name: ClassVar = "vanishing_gradient"
    meaning: ClassVar = "the gradient is 10,000 times smaller in the first layers than in the last"
    remedy: ClassVar = "Use residual connections, norms between the layers, or ReLU, GELU or SiLU as activation."

    patience: int = 3
    threshold: float = 1e-4

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        value = np.full(len(sample), np.nan)
        for row, first, last in sample.ends(sample.gradient):
            if last > _NO_LOSS:
                value[row] = first / last

        def say(row: int) -> str:
            if value[row] == 0:
                return f"the gradient of the last layers does not reach {sample.label(row)}"
            return (
                f"the gradient falls to {value[row]:.2g} of its size from the last layers back to {sample.label(row)}"
            )

        return Verdict(value, value < self.threshold, self.threshold, say)


@dataclass(frozen=True)
class StreamMismatch(Rule):
    """Streams that meet in one concatenation at unlike sizes: the next layer hardly sees the quiet one.

    Streams meet if they have one parent, tag, call and number of positions.

    Warm-up of 100 steps: a branch that begins at 0 grows, and U-Nets without norms pass through a ratio of 20 near step
    40 and return (ours).

    Attributes:
        threshold: RMS of the loudest over that of the quietest stream.
    """

    name: ClassVar = "stream_mismatch"
    meaning: ClassVar = "of two streams that are concatenated, one is 10 times louder"
    remedy: ClassVar = "Give each stream a norm of its own before they are concatenated."

    patience: int = 3
    warmup_steps: int = 100
    threshold: float = 10.0

    def judge(self, sample: Sample) -> Verdict:
        """Judge every row: see the class."""
        value = np.full(len(sample), np.nan)
        rms, rows = sample["rms"], sample.rows
        meeting: dict[tuple[str, str, int, float], list[int]] = {}
        if "stream" in rows.kind:
            positions = (sample["numel"] / np.maximum(sample["channels"], 1)).tolist()
            for row in rows.forward_order:
                layer, tag, call = rows.keys[row]
                parent, dot, _ = layer.split("+", maxsplit=1)[0].rpartition(".")
                if dot and rows.kind[row] == "stream" and np.isfinite(rms[row]):
                    meeting.setdefault((parent, tag, call, positions[row]), []).append(row)
        streams = {met[0]: sorted(met, key=lambda row: rms[row]) for met in meeting.values() if len(met) > 1}
        for row, by_size in streams.items():
            quiet, loud = rms[by_size[0]], rms[by_size[-1]]
            value[row] = loud / quiet if quiet > 0 else np.inf if loud > 0 else np.nan

        def say(row: int) -> str:
            quiet, loud = streams[row][0], streams[row][-1]
            return (
                f"the RMS of {sample.label(loud)} is {figure(rms[loud])}, {figure(value[row])} times that of "
                f"{sample.label(quiet)}, which it is concatenated with"
            )

        return Verdict(value, value > self.threshold, self.threshold, say)


def _largest(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else np.nan
