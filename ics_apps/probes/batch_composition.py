"""What a discriminator says of one real sample as the rest of its batch turns from real to fake.

Which modules let samples see each other is `leakage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ics_apps.probes.preserve import ProbeError, Surroundings, preserved


@dataclass(frozen=True, slots=True)
class CompositionPoint:
    """The logit of the same real sample at one share of fakes.

    Attributes:
        share: of the other slots that hold fakes, in [0, 1].
        mean: over compositions.
        std: over compositions, with n - 1; 0 for a single one.
        count: compositions.
    """

    share: float
    mean: float
    std: float
    count: int


@dataclass(frozen=True, slots=True)
class BatchComposition:
    """What `batch_composition` found.

    Attributes:
        points: one a share.
        slope: least-squares slope of the logit against the share, the mean over compositions.
        slope_std: its standard deviation over compositions, with n - 1; 0 for a single one.
    """

    points: tuple[CompositionPoint, ...]
    slope: float
    slope_std: float


def batch_composition(
    model: nn.Module,
    real: Tensor,
    fake: Tensor,
    *,
    logit: Callable[[Tensor], Tensor] | None = None,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    compositions: int = 8,
    seed: int = 0,
) -> BatchComposition:
    """The logit of a fixed real sample x against the share p of fakes among the B - 1 others of its batch.

    x = real[0] stands in slot 0. Of the other slots the first round(p (B - 1)) hold fakes, the rest reals, B being the
    number of reals; a composition is one random order of the others and of the fakes, drawn by a generator of its own,
    and is filled up from p = 0 to 1, so that it has a slope of its own. Random numbers and buffers are put back before
    each forward pass: spectral norm's vectors would move the logit without any mixing. A model that looks at each
    sample alone gives the same bits throughout, and slope and spread exactly 0; with batch norm the logit tells the
    company x is in.

    Costs `compositions` forward passes a share, without gradients.

    Args:
        model: the discriminator, in the mode to be judged, which for batch norm is training. It is left as it was.
        real: `(B, ...)`, B >= 2.
        fake: `(B - 1, ...)` or more.
        logit: gives the logits of a batch, `(B, ...)`, of which the mean of each sample counts; None for `model`.
        shares: at least two different ones in [0, 1].
        compositions: how many, >= 1.
        seed: of the generator.

    Raises:
        ProbeError: too few samples, shapes that differ, logits without the batch axis or not finite.
        ValueError: an argument out of range.

    Example:
        >>> model, real, fake = nn.BatchNorm1d(1), torch.ones(5, 1), torch.zeros(4, 1)
        >>> found = batch_composition(model, real, fake)  # the only real one stands out
        >>> [round(point.mean, 2) for point in found.points], found.points[0].count
        ([0.0, 0.5, 0.82, 1.22, 2.0], 8)

    Reference: ours; the effect: Salimans et al. 2016 (1606.03498).
    """
    if compositions < 1:
        raise ValueError(f"compositions is {compositions}; give at least 1.")
    if len(set(shares)) < 2 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares is {tuple(shares)}; give at least two different ones from 0 to 1.")
    _check_samples(real, fake)
    generator = torch.Generator().manual_seed(seed)
    logits = np.empty((compositions, len(shares)))
    with preserved(model), torch.no_grad():
        surroundings = Surroundings(model)
        for number in range(compositions):
            others = real[1:][torch.randperm(len(real) - 1, generator=generator).to(real.device)]
            fakes = fake[torch.randperm(len(fake), generator=generator).to(fake.device)]
            for place, share in enumerate(shares):
                count = round(share * len(others))
                batch = torch.cat([real[:1], fakes[:count], others[count:]])
                surroundings.restore()
                logits[number, place] = _first_logit((logit or model)(batch), len(real))
    return _summary(logits, np.asarray(shares, np.float64))


def _check_samples(real: Tensor, fake: Tensor) -> None:
    if len(real) < 2 or len(fake) < len(real) - 1:
        raise ProbeError(
            f"There are {len(real)} real and {len(fake)} fake samples: give at least 2 reals, and as many fakes less 1."
        )
    if real.shape[1:] != fake.shape[1:]:
        raise ProbeError(
            f"A real sample has shape {tuple(real.shape[1:])}, a fake one {tuple(fake.shape[1:])}: give equal shapes."
        )


def _first_logit(logits: Tensor, size: int) -> float:
    """That of slot 0; of logits by patch their mean."""
    if not isinstance(logits, Tensor) or logits.ndim < 1 or len(logits) != size:
        received = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ProbeError(
            f"The logits have {received} for {size} samples: give `logit`, which returns one row a sample."
        )
    value = float(logits[0].double().mean())
    if not np.isfinite(value):
        raise ProbeError(f"The logit of the real sample is {value}: measure earlier.")
    return value


def _summary(logits: NDArray[np.float64], shares: NDArray[np.float64]) -> BatchComposition:
    # Differences from the first one, so that equal logits have mean, spread and slope without rounding.
    first = logits[0, 0]
    change = logits - first
    centred = shares - shares.mean()
    slopes = change @ centred / (centred @ centred)
    means, stds = first + change.mean(0), _std(change)
    points = zip(shares.tolist(), means.tolist(), stds.tolist(), strict=True)
    return BatchComposition(
        tuple(CompositionPoint(share, mean, std, len(logits)) for share, mean, std in points),
        float(slopes.mean()),
        float(_std(slopes)),
    )


def _std(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
