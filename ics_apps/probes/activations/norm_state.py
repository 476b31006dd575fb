"""What a normalization layer's state tells: batch against running statistics, and how noisy those of a batch are.

The values come from hooks and samples elsewhere; of each layer only its class and its shapes are asked here.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer

from ics_apps.norms.convert.adapters import NormWrapper
from ics_apps.norms.layers.batch_like import GhostBatchNorm

Float64 = NDArray[np.float64]

POSITIONS: Final = 4  # positions of a sample and channel that are read to compare them with each other
# Share of |beta| below which gamma is taken for 0: what a half-precision output keeps of z is then rounding.
LEAST_GAMMA: Final = 0.01
_SHARES: Final = np.linspace(0.0, 1.0, 33)
# A class is scale-invariant by the end of its name or that of a base; a test holds this against the registry.
_NAMES: Final = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "RmsNorm")
_OTHERS: Final = frozenset(
    {"BatchChannelNorm", "BatchRenorm", "BlendedNorm", "EvoNormB0", "FilterResponseNorm", "PixelNorm", "ScaleNorm"}
    | {"SwitchableNorm"}
)


def has_running_statistics(module: Any) -> bool:
    """Whether a layer keeps one running mean and variance a channel and moves them once a training forward.

    Not so: ghost batch norm, which moves them once a chunk, and layers with one set of statistics a domain.

    Example:
        >>> has_running_statistics(nn.BatchNorm2d(4)), has_running_statistics(nn.GroupNorm(2, 4))
        (True, False)
    """
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    # Not `is_lazy`, which a compiler cannot trace.
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or isinstance(mean, UninitializedBuffer):
        return False
    once = hasattr(module, "momentum") and not isinstance(module, GhostBatchNorm)
    return once and mean.ndim == 1 and mean.shape == variance.shape


def pools_batch(module: nn.Module) -> bool:
    """Whether a layer's training output is (z gamma_c + beta_c), z standardised over batch and positions by channel.

    That is what `batch_noise` needs: torch's batch norms and ours that run torch's or our own forward pass, not those
    with an activation behind (timm's), a mix of statistics, chunks or noise.

    Example:
        >>> pools_batch(nn.BatchNorm2d(4)), pools_batch(nn.InstanceNorm2d(4, track_running_stats=True))
        (True, False)
    """
    home: str = type(module).forward.__module__
    return isinstance(module, _BatchNorm) and home.startswith(("torch.nn.modules.", "ics_apps.norms."))


def is_scale_invariant(module: nn.Module) -> bool:
    """Whether a norm's training output stays the same, up to eps, when its input is multiplied by c > 0.

    Known by the name of its class or of a base.

    Example:
        >>> is_scale_invariant(nn.GroupNorm(2, 4)), is_scale_invariant(nn.LocalResponseNorm(2))
        (True, False)
    """
    if isinstance(module, NormWrapper):
        return is_scale_invariant(module.norm)
    names = [base.__name__ for base in type(module).__mro__]
    return not names[0].startswith("Frozen") and any(name.endswith(_NAMES) or name in _OTHERS for name in names)


def batch_moments(
    old_mean: ArrayLike, old_var: ArrayLike, new_mean: ArrayLike, new_var: ArrayLike, momentum: float
) -> tuple[Float64, Float64]:
    """The exact batch mean and unbiased variance of each channel, from the change of the running statistics.

    mean_B = r_old + (r_new - r_old) / momentum, and the same for the variance: no pass over the activations. Rounding
    of the float32 buffers grows by 1 / momentum: about 5e-7 at 0.1.

    Args:
        old_mean: running mean before the forward, `(C,)`.
        old_var: running variance before it.
        new_mean: running mean after it.
        new_var: running variance after it.
        momentum: weight of the new value, in [0, 1] (torch's meaning); at 0 the batch leaves no trace: NaN.

    Returns:
        Batch mean and unbiased batch variance, `(C,)` each.

    Example:
        >>> mean, var = batch_moments([0.0], [1.0], [0.5], [2.0], momentum=0.5)
        >>> mean.tolist(), var.tolist()
        ([1.0], [3.0])

    Reference: ours, by solving torch's update rule r_new = (1 - momentum) r_old + momentum batch.
    """
    return _solved(old_mean, new_mean, momentum), _solved(old_var, new_var, momentum)


def running_gap(
    old_mean: ArrayLike, old_var: ArrayLike, new_mean: ArrayLike, momentum: float, eps: float = 1e-5
) -> float:
    """How far a batch lies from what a norm layer will use in evaluation: the train/eval mismatch.

    median over channels of |mean_B - r_old| / sqrt(v_old + eps), with r_old the running mean without this batch.

    Args:
        old_mean: running mean before the forward, `(C,)`.
        old_var: running variance before it.
        new_mean: running mean after it.
        momentum: weight of the new value, in [0, 1]; at 0 the gap is NaN.
        eps: the layer's eps.

    Returns:
        The gap, in running standard deviations.

    Example:
        >>> running_gap([0.0] * 4, [1.0] * 4, [0.2] * 4, momentum=0.1, eps=0.0)
        2.0

    Reference: ours.
    """
    gap = np.abs(_solved(old_mean, new_mean, momentum) - np.asarray(old_mean))
    return _median(gap / np.sqrt(np.asarray(old_var, np.float64) + eps))


def running_var_gap(old_var: ArrayLike, new_var: ArrayLike, momentum: float, eps: float = 1e-5) -> float:
    """How far a batch's spread lies from what a norm layer will use in evaluation, as a log-ratio.

    median over channels of |ln((var_B + eps) / (v_old + eps))|, var_B the unbiased variance of the batch, v_old the
    running one without it.

    Args:
        old_var: running variance before the forward, `(C,)`.
        new_var: running variance after it.
        momentum: weight of the new value, in [0, 1]; at 0 the gap is NaN.
        eps: the layer's eps, > 0.

    Returns:
        The gap; ln 2 = 0.69 is twice or half the variance.

    Example:
        >>> round(running_var_gap([1.0] * 4, [1.1] * 4, momentum=0.1, eps=1e-9), 6)  # a batch variance of 2
        0.693147

    Reference: ours.
    """
    before = np.asarray(old_var, np.float64) + eps
    # Rounding of the buffers, grown by 1 / momentum, can take the variance of a constant channel below 0.
    batch = np.maximum(_solved(old_var, new_var, momentum), 0.0) + eps
    return _median(np.abs(np.log(batch / before)))


@dataclass(frozen=True, slots=True)
class Grid:
    """Few channels of an output at few positions of each sample, so that positions can be compared in pairs.

    An evenly strided sample of the same size has, with B C above its size, no two values of one sample and channel.

    Attributes:
        axis: the channel axis.
        samples: places along axis 0.
        channels: places along `axis`.
        positions: places along all other axes, flattened.
    """

    axis: int
    samples: range
    channels: range
    positions: range

    @classmethod
    def choose(cls, shape: torch.Size, axis: int, size: int = 512, turn: int = 0) -> Grid:
        """Choose about `size` values: 4 positions (fewer if there are fewer), the samples, then as many channels.

        Args:
            shape: of the output, at least two axes.
            axis: the channel axis, not 0.
            size: values to read, >= 8.
            turn: number of the sample; it moves on to other channels.

        Example:
            >>> Grid.choose(torch.Size([32, 64, 8, 8]), axis=1)
            Grid(axis=1, samples=range(0, 32), channels=range(0, 49, 16), positions=range(0, 49, 16))
        """
        total = math.prod(shape) // (shape[0] * shape[axis])
        positions = _spread(total, POSITIONS)
        samples = _spread(shape[0], max(size // len(positions), 1))
        channels = _spread(shape[axis], max(size // (len(positions) * len(samples)), 1), turn)
        return cls(axis, samples, channels, positions)

    def read(self, x: Tensor) -> Tensor:
        """These values of `x`, detached: `(samples, channels, positions)`, a view if its positions lie evenly."""
        part = x.detach().movedim(self.axis, 1)
        sizes, strides = part.shape[2:], part.stride()[2:]
        if any(step != size * inner for step, size, inner in zip(strides, sizes[1:], strides[1:], strict=False)):
            part = part.flatten(2)
            strides = part.stride()[2:]
        batch, channel, *_ = part.stride()
        inner = strides[-1] if strides else 0
        steps = (batch * self.samples.step, channel * self.channels.step, inner * self.positions.step)
        return part.as_strided(self.shape, steps, part.storage_offset() + channel * self.channels.start)

    @property
    def number(self) -> int:
        """How many values are read."""
        return math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Samples, channels, positions."""
        return len(self.samples), len(self.channels), len(self.positions)


def batch_noise(
    values: NDArray[np.floating[Any]],
    batch: int,
    per_channel: int,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
) -> float:
    """How noisy a batch norm's mean is: its standard deviation over batches, in units of sigma.

    With rho the correlation of two values of one sample and channel, m = B S and
    sd(mu_B) / sigma = sqrt((1 + (S - 1) rho) / m) = sqrt(1 / m_eff): positions of one image are no independent values,
    and m_eff lies between B and m. rho is what the pairs of values of z = (y - beta) / gamma show,
    r = (sum over samples and channels of (sum z)^2 - sum z^2) / (sum of (n - 1) sum z^2) with n values each, inverted:
    since z was standardised by the batch's own moments, E r = (rho - v) / (1 - v), v = 1 / m_eff, for large B. What is
    inverted is the exact mean for Gaussian values with random sample effects: 0.24 instead of 1/3 at B = 2, rho = 1/2
    and large S.

    Args:
        values: some of the layer's output, `(samples, channels, positions)`, see `Grid`. A channel of a sample in which
            a value is not finite is left out.
        batch: B, the samples that the statistics run over, those of all ranks where ranks share them.
        per_channel: S, the positions of one sample: values per sample and channel.
        gamma: the weights of these channels, `(channels,)`. Channels with |gamma| < |beta| / 100 are left out.
        beta: their biases, `(channels,)`.

    Returns:
        The noise, in (0, 1]. With B = 1 it is 1: one sample is no batch (m_eff = 1), the layer is an instance norm.
        With S = 1 it is 1 / sqrt(B). NaN where no two values are of one sample and channel.

    Example:
        >>> z = np.array([[[1, 1, 1]], [[-1, -1, -1]]], np.float32)  # two samples, each all alike: two values, not six
        >>> round(batch_noise(z, batch=2, per_channel=3), 6)
        0.707107

    Reference: design effect, Kish 1965; the correction for standardised values is ours.
    """
    if batch <= 1:
        return 1.0
    if per_channel <= 1:
        return 1 / math.sqrt(batch)
    shown = _pair_correlation(_standardised(values, np.asarray(gamma), np.asarray(beta)))
    if math.isnan(shown):
        return math.nan
    rho = float(np.interp(shown, _shown_correlation(batch, per_channel), _SHARES))
    return math.sqrt((1 + (per_channel - 1) * rho) / (batch * per_channel))


def _solved(old: ArrayLike, new: ArrayLike, momentum: float) -> Float64:
    before: Float64 = np.asarray(old, np.float64)
    return before + (np.asarray(new, np.float64) - before) / (momentum if momentum > 0 else math.nan)


def _median(values: Float64) -> float:
    # np.median takes ten times as long for a few hundred channels.
    ordered = np.sort(values, axis=None)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _spread(length: int, most: int, turn: int = 0) -> range:
    """At most `most` places below `length`, evenly spaced, each turn beginning one later."""
    count = min(length, most)
    step = length // count
    start = turn % (length - (count - 1) * step) if turn else 0
    return range(start, start + (count - 1) * step + 1, step)


def _slice(places: range) -> slice:
    return slice(places.start, places.stop, places.step)


def _standardised(values: NDArray[np.floating[Any]], gamma: NDArray[Any], beta: NDArray[Any]) -> Float64:
    """The values before scale and shift, `(cells, positions)`: one cell a sample and channel, if it is of use."""
    alive = np.abs(gamma) > LEAST_GAMMA * np.abs(beta)
    z: Float64 = (values - beta[..., None]) / np.where(alive, gamma, np.nan)[..., None].astype(np.float64)
    cells = z.reshape(-1, z.shape[-1])
    return cells[np.isfinite(cells).all(axis=1)]


def _pair_correlation(z: Float64) -> float:
    """What the pairs of each row show."""
    total, square = z.sum(axis=1), np.square(z).sum()
    # Not by the number of pairs alone: z^2 is 1 on average, but not in the sample, and what both share cancels.
    weight = (z.shape[1] - 1) * square
    return float((total @ total - square) / weight) if weight > 0 else math.nan


@functools.lru_cache(maxsize=256)
def _shown_correlation(batch: int, per_channel: int) -> Float64:
    """The mean pair correlation of standardised values for each of `_SHARES` as rho.

    Of B S values with random sample effects the share of the variance that lies between samples is
    t = U / (U + k (1 - U)), k = (1 - rho) / (1 + (S - 1) rho), U ~ Beta((B - 1) / 2, B (S - 1) / 2), and pairs show
    (S t - 1) / (S - 1). With U = sin^2 the density is smooth; its mean is taken over 128 points around the mode.
    """
    inner = batch * (per_channel - 1) - 1
    mode, width = math.atan(math.sqrt((batch - 2) / inner)), 8 / math.sqrt(batch * per_channel)
    low, high = max(mode - width, 0.0), min(mode + width, math.pi / 2)
    angle = low + (high - low) * (np.arange(128) + 0.5) / 128
    log_density = (batch - 2) * np.log(np.sin(angle)) + inner * np.log(np.cos(angle))
    density = np.exp(log_density - log_density.max())
    between = np.square(np.sin(angle))
    k = ((1 - _SHARES) / (1 + (per_channel - 1) * _SHARES))[:, None]
    share = between / (between + k * (1 - between)) @ (density / density.sum())
    shown: Float64 = (per_channel * share - 1) / (per_channel - 1)
    return shown
