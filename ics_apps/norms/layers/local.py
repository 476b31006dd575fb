"""Layers that divide by the energy of a window around each value. Their names live in `catalog.local`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ics_apps.norms.engine.axes import channel_axis, widened
from ics_apps.norms.engine.blocked import ChannelRows, by_blocks, sample_blocks
from ics_apps.norms.engine.own_gradient import Gradients, Rule, Wanted, by_rule
from ics_apps.norms.registry import Dim


class LocalResponseNorm(nn.Module):
    """y_c = x_c / (k + alpha * sum of x_c'^2 over |c' - c| <= size / 2)^beta, c' within the channels."""

    def __init__(self, num_features: int, dim: Dim, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.axis = channel_axis(dim)
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Divide each value by the energy of the channels around its own."""
        return by_rule(Rule(self._formula, self._value, self._gradients), x)

    def _formula(self, x: Tensor) -> Tensor:
        values = widened(x)
        energy = _window_sum(values.square(), self.axis, self.size)
        return (values * _to_minus(energy * self.alpha + self.k, self.beta)).to(x.dtype)

    def _value(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Keeps k + alpha * the energy, whose windows cost more than to read it again."""
        rows = ChannelRows.of(x, self.axis)
        x = rows.dense(x)
        y, damping = torch.empty_like(x), torch.empty_like(x, dtype=widened(x[:0]).dtype)
        values, written, dampings = rows.flat(x), rows.flat(y), rows.flat(damping)
        window, scratch = _ChannelWindow(rows.at, self.size), damping.new_empty(0)
        for block in sample_blocks(x):
            part = widened(values[block])
            energy = window.of_product(part, part)
            torch.add(energy.new_tensor(self.k), energy, alpha=self.alpha, out=dampings[block])
            scratch.resize_(part.shape)
            torch.mul(part, _to_minus(dampings[block], self.beta, out=scratch), out=written[block])
        return y, (damping,)

    def _gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: Wanted
    ) -> Gradients:
        # With the damping d and the window sum W, dx = g d^-beta - 2 alpha beta x W(g x d^(-beta - 1)).
        rows = ChannelRows.of(inputs[0], self.axis)
        x, gradient = rows.dense(inputs[0]), rows.dense(gradient)
        grad_x = torch.empty_like(x)
        values, upstream, dampings, written = (rows.flat(tensor) for tensor in (x, gradient, kept[0], grad_x))
        window, damped, scratch = _ChannelWindow(rows.at, self.size), kept[0].new_empty(0), kept[0].new_empty(0)
        for block in sample_blocks(x):
            part, damping = widened(values[block]), dampings[block]
            damped.resize_(part.shape)
            _to_minus(damping, self.beta, out=damped).mul_(upstream[block])
            torch.div(damped, damping, out=scratch.resize_(part.shape))
            by_neighbours = window.of_product(scratch, part)
            torch.addcmul(damped, part, by_neighbours, value=-2 * self.alpha * self.beta, out=written[block])
        return (grad_x,)

    def extra_repr(self) -> str:
        """Channels, window and constants."""
        return f"{self.num_features}, size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class DivisiveNorm(nn.Module):
    """v = x - mean_W x, y = v / sqrt(sigma^2 + mean_W v^2) * weight + bias, W the window around each position.

    W holds the positions of the input at most `window` / 2 away along each axis and, unless `across_channels` is False,
    all channels. sigma is a scalar of shape (1,); weight and bias have shape (C,), or are None without `affine`.
    """

    def __init__(
        self, num_features: int, dim: Dim, window: int, across_channels: bool, sigma: float, affine: bool
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.dim = dim
        self.window = window
        self.across_channels = across_channels
        self.sigma = nn.Parameter(torch.tensor([sigma]))
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Centre and scale each value by its surroundings.

        Raises:
            ValueError: One position only and `across_channels` False: the value minus itself is always 0.
        """
        axis = channel_axis(self.dim)
        if not self.across_channels and x.shape[1:].numel() == x.shape[axis]:
            raise ValueError(
                f"divisive norm with across_channels=False needs more than one position, got input size "
                f"{tuple(x.shape)}; use a larger input, fewer poolings, or across_channels=True"
            )
        affine = () if self.weight is None or self.bias is None else (self.weight, self.bias)
        if self.across_channels:
            return by_rule(Rule(self._formula, self._value, self._gradients), x, self.sigma, *affine)
        return by_blocks(self._formula, x, self.sigma, *affine)

    def _formula(self, x: Tensor, sigma: Tensor, *affine: Tensor) -> Tensor:
        values = widened(x.transpose(1, 2) if self.dim == "tokens" else x)
        centred = values - self._window_mean(values, shifted=True)
        y = centred * torch.rsqrt(self._window_mean(centred.square()) + sigma.square())
        if affine:
            weight, bias = (vector.view(-1, *[1] * (y.dim() - 2)) for vector in affine)
            y = y * weight + bias
        y = y.to(x.dtype)
        return y.transpose(1, 2) if self.dim == "tokens" else y

    def _value(self, x: Tensor, sigma: Tensor, *affine: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """With all channels in a window, only their mean and mean square at each position are averaged by windows."""
        rows = ChannelRows.of(x, channel_axis(self.dim))
        x, places = rows.dense(x), self._places(x)
        y = torch.empty_like(x)
        values, written, means, variances = rows.flat(x), rows.flat(y), [], []
        for block in sample_blocks(x):
            part = widened(values[block])
            means.append(part.mean(rows.at, keepdim=True))
            scratch = part - means[-1]
            variances.append(scratch.mul_(scratch).mean(rows.at, keepdim=True))
        mean, variance = torch.cat(means), torch.cat(variances)
        level = self._box_mean(mean.view(places), shifted=True).view_as(mean)
        deviation = mean - level
        energy = variance + deviation.square()
        contrast = torch.rsqrt(self._box_mean(energy.view(places)).view_as(mean) + sigma.to(mean.dtype).square())
        weight, bias = [rows.by_channel(vector) for vector in affine] or (None, None)
        for block in sample_blocks(x):
            scratch = (widened(values[block]) - level[block]).mul_(contrast[block])
            if weight is not None and bias is not None:
                scratch.mul_(weight).add_(bias)
            written[block] = scratch
        return y, (level, deviation, contrast)

    def _gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], wanted: Wanted
    ) -> Gradients:
        # Back through y = w v r + b, r = (sigma^2 + M mean_C v^2)^-1/2, v = x - M mean_C x, M the mean over positions.
        x, sigma, *affine = inputs
        level, deviation, contrast = kept
        rows, places = ChannelRows.of(x, channel_axis(self.dim)), self._places(x)
        x, gradient = rows.dense(x), rows.dense(gradient)
        weight = affine[0].to(level.dtype) if affine else level.new_ones(self.num_features)
        grad_affine = [torch.zeros_like(weight) for _ in affine]
        values, upstream = rows.flat(x), rows.flat(gradient)
        products, totals, ones = [], [], torch.ones_like(contrast)
        for block in sample_blocks(x):
            incoming = widened(upstream[block])
            scratch = (widened(values[block]) - level[block]).mul_(incoming)
            products.append(rows.over_channels(scratch, weight))
            totals.append(rows.over_channels(incoming, weight))
            if affine:
                grad_affine[0] += rows.over_positions(scratch, contrast[block])
                grad_affine[1] += rows.over_positions(incoming, ones[block])
        by_energy = torch.cat(products) * contrast.pow(3) * -0.5
        grad_sigma = 2 * sigma * by_energy.sum()
        # The derivative by v is g w r + v by_value; its sum over the channels goes back to the level.
        by_value = self._box_mean_adjoint(by_energy.view(places)).view_as(level) * (2 / self.num_features)
        by_level = torch.cat(totals) * contrast / self.num_features + by_value * deviation
        by_level = self._box_mean_adjoint(by_level.view(places)).view_as(level)
        grad_x = torch.empty_like(x) if wanted[0] else None
        if grad_x is not None:
            written = rows.flat(grad_x)
            for block in sample_blocks(x):
                scratch = widened(upstream[block]) * contrast[block]
                if affine:
                    scratch.mul_(rows.by_channel(weight))
                scratch.addcmul_(widened(values[block]) - level[block], by_value[block])
                written[block] = scratch.sub_(by_level[block])
        found = (grad_x, grad_sigma, *grad_affine)
        return tuple(
            value.to(tensor.dtype) if want and value is not None else None
            for value, tensor, want in zip(found, inputs, wanted, strict=True)
        )

    def _places(self, x: Tensor) -> tuple[int, ...]:
        """The shape (B, 1, *S) of one value a position."""
        return (len(x), 1, *(x.shape[1:2] if self.dim == "tokens" else x.shape[2:]))

    def _window_mean(self, values: Tensor, *, shifted: bool = False) -> Tensor:
        """Mean over the part of each window that lies within the input; (B, 1 or C, *S)."""
        return self._box_mean(values.mean(1, keepdim=True) if self.across_channels else values, shifted=shifted)

    def _box_mean(self, values: Tensor, *, shifted: bool = False) -> Tensor:
        """Mean over the positions of each window."""
        axes = tuple(range(2, values.dim()))
        shift: Tensor | float = 0.0
        if shifted:
            # Summed about a common level, the values keep their digits. The result does not depend on the level, so
            # neither do its derivatives.
            shift = values.detach().mean(axes, keepdim=True)
            values = values - shift
        # The part of a box within the input is a box again, so its mean may be taken axis by axis.
        for axis in axes:
            values = _window_sum(values, axis, self.window) / self._counts(values, axis)
        return values + shift if shifted else values

    def _box_mean_adjoint(self, values: Tensor) -> Tensor:
        """The transpose of `_box_mean` as a matrix: windows are symmetric, their counts are not."""
        for axis in range(2, values.dim()):
            values = _window_sum(values / self._counts(values, axis), axis, self.window)
        return values

    def _counts(self, values: Tensor, axis: int) -> Tensor:
        """How many places of an axis lie in the window around each."""
        count = _window_sum(values.new_ones(values.shape[axis]), 0, self.window)
        return count.view(-1, *[1] * (values.dim() - 1 - axis))

    def extra_repr(self) -> str:
        """Channels, window and options."""
        affine = self.weight is not None
        return f"{self.num_features}, window={self.window}, across_channels={self.across_channels}, affine={affine}"


class _ChannelWindow:
    """Sums over neighbouring channels of blocks (n, C, P) or (n, P, C), without gradient, in one padded buffer."""

    def __init__(self, axis: int, size: int) -> None:
        self.axis = axis
        self.size = size
        self.padded = torch.empty(0)

    def of_product(self, a: Tensor, b: Tensor) -> Tensor:
        """The window sums of a * b, as a view that the next call overwrites."""
        shape = list(a.shape)
        shape[self.axis] += self.size - 1
        if list(self.padded.shape) != shape:
            self.padded = a.new_zeros(shape)
        torch.mul(a, b, out=self.padded.narrow(self.axis, self.size // 2, a.shape[self.axis]))
        if self.axis == 1:
            return _sum_from_each(self.padded, 1, self.size)
        # In one line, since additions of short rows are slow; the sums that run from row to row are left out.
        line = _sum_from_each(self.padded.flatten(), 0, self.size)
        return line.as_strided(a.shape, self.padded.stride())


def _window_sum(values: Tensor, axis: int, size: int) -> Tensor:
    """Sum over the `size` places around each along an axis, as far as they exist."""
    half = size // 2
    return _sum_from_each(F.pad(values, [0, 0] * (values.dim() - 1 - axis) + [half, half]), axis, size)


def _sum_from_each(values: Tensor, axis: int, size: int) -> Tensor:
    """Sum over each place and the `size` - 1 behind it along an axis, for the places that have them.

    By sums over 1, 2, 4... places: those that make up `size` in binary, one behind the other.
    """
    length = values.shape[axis] - size + 1
    sums, width, start = values, 1, 1
    total = values.narrow(axis, 0, length)
    while 2 * width <= size:
        rest = sums.shape[axis] - width
        sums, width = sums.narrow(axis, 0, rest) + sums.narrow(axis, width, rest), 2 * width
        if size & width:
            total, start = total + sums.narrow(axis, start, length), start + width
    return total


def _to_minus(values: Tensor, exponent: float, out: Tensor | None = None) -> Tensor:
    """values^(-exponent), without gradient into `out`; the published exponent by roots, which cost less."""
    if exponent != 0.75:
        return torch.pow(values, -exponent, out=out)
    root = values.rsqrt()
    return root * root.sqrt() if out is None else torch.sqrt(root, out=out).mul_(root)
