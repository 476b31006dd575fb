"""The one engine of our own norms: y = (x - mean) * scale + offset from the moments of each sample's channels.

Whatever pools positions, channels, groups, samples, domains or ranks needs only small tables (B, C) once mean and
variance of each channel of each sample are known. A norm is therefore a *program*: a pure function from the two tables
(and its parameters) to the tables `scale` and `offset`. Here x is read for the tables and once more for the result, and
the gradient is formed the same way. The programs are methods of the modules in `norms.layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ics_apps.norms.engine.axes import widened
from ics_apps.norms.engine.blocked import sample_blocks
from ics_apps.norms.engine.own_gradient import is_watched
from ics_apps.norms.registry import Dim

Program: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""(mean, var, *tensors) -> (scale, offset): tables (B, C), or what broadcasts to them; pure and differentiable."""


def normalize(x: Tensor, dim: Dim, program: Program, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a program: y = (x - mean) * scale + offset.

    Gradients are right to any order: the fast route serves the first, and gives way to plain operations as soon as a
    gradient is itself differentiated.

    Args:
        x: Input of the shape that `dim` tells, (B, C), (B, C, *S) or (B, L, C).
        dim: As in `make_norm`.
        program: See `Program`.
        tensors: All that the program differentiates with respect to, beside the moments.

    Returns:
        y in the shape, type and memory format of x; mean and biased variance (B, C) as constants, for running averages.

    Example:
        >>> def instance(mean, var):
        ...     return (var + 1e-5).rsqrt(), torch.zeros_like(mean)
        >>> y, mean, var = normalize(torch.randn(2, 3, 8, 8), 2, instance)
        >>> y.mean((2, 3)).abs().max().item() < 1e-6, mean.shape
        (True, torch.Size([2, 3]))
    """
    if dim == 0:
        mean = x.double() if _may_run_fused(x) else widened(x)
        _, offset = program(mean, torch.zeros_like(mean), *tensors)
        return offset.to(x.dtype), mean.detach(), torch.zeros_like(mean)
    columns = _columns(x, dim)
    if _may_run_fused(columns):
        y, mean, var = _Fused.apply(columns, program, *tensors)
    else:
        y, mean, var = _plain(columns, program, *tensors)
    y = y.transpose(1, 2) if dim == "tokens" else y.unflatten(2, x.shape[2:]) if x.dim() > 3 else y
    return y, mean.detach(), var.detach()


def channel_moments(x: Tensor, dim: Dim) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (B, C) of each channel of each sample, differentiable to any order."""
    if dim == 0:
        return widened(x), torch.zeros_like(widened(x))
    columns = _columns(x, dim)
    if _may_run_fused(columns):
        mean, var = _FastMoments.apply(columns)
        return mean, var
    return plain_moments(widened(columns))


def plain_moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions of (B, C, S), by differentiable operations; tables (B, C)."""
    if columns.numel() == 0:
        # torch warns of the variance of nothing; the sum stays in the graph.
        return columns.sum(2), columns.sum(2)
    var, mean = torch.var_mean(columns, 2, correction=0)
    return mean, var


def pooled(mean: Tensor, var: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Moments of the union of equally large parts along an axis of size 1 in the result: no difference of squares.

    mean = mean_i mean_i, var = mean_i (var_i + (mean_i - mean)^2).
    """
    joint = mean.mean(axis, keepdim=True)
    return joint, (var + (mean - joint).square()).mean(axis, keepdim=True)


def pooled_groups(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Moments (B, C) of each channel's group; `num_groups` 1 pools all channels."""
    grouped = (mean.shape[0], num_groups, mean.shape[1] // num_groups)
    parts = pooled(mean.reshape(grouped), var.reshape(grouped), 2)
    joint, spread = (part.expand(grouped).flatten(1) for part in parts)
    return joint, spread


def standardized(
    mean: Tensor, centre: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and offset of (x - centre) / sqrt(var + eps) * weight + bias, for tables of broadcastable shape."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    offset = (mean - centre) * scale
    return scale.expand_as(mean), offset if bias is None else offset + bias


def _columns(x: Tensor, dim: Dim) -> Tensor:
    """The input with positions as (B, C, S), a view where its layout allows one."""
    return x.transpose(1, 2) if dim == "tokens" else x.flatten(2)


def _may_run_fused(columns: Tensor) -> bool:
    # Elsewhere than on a CPU the speed of the kernels used here was never measured.
    return columns.device.type == "cpu" and columns.numel() > 0 and not is_watched()


def _plain(columns: Tensor, program: Program, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = widened(columns)
    mean, var = plain_moments(values)
    scale, offset = program(mean, var, *tensors)
    y = (values - mean.unsqueeze(2)) * scale.unsqueeze(2) + offset.unsqueeze(2)
    return y.to(columns.dtype), mean, var


class _Fused(torch.autograd.Function):
    """`_plain` with a first gradient that reads x and the incoming gradient twice each, as batch norm's kernel does."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, program: Program, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = _dense(widened(columns))
        y, near, rest, var = _centred(values)
        # The mean in double precision: programs subtract means, which in float32 is all rounding if they are large.
        mean, var = near + rest.double(), var.double()
        scale, offset = program(mean, var, *tensors)
        offset = (offset - rest * scale).to(y.dtype)
        torch.addcmul(offset.unsqueeze(2), y, scale.to(y.dtype).unsqueeze(2), out=y)
        ctx.program = program
        ctx.save_for_backward(columns, mean, var, *tensors)
        ctx.mark_non_differentiable(mean, var)
        return y.to(columns.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        columns, mean, var, *tensors = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        if torch.is_grad_enabled():
            found = _plain_gradients(ctx.program, columns, tensors, gradient, wanted)
        else:
            found = _fast_gradients(ctx.program, columns, mean, var, tensors, gradient, wanted)
        return found[0], None, *found[1:]


class _FastMoments(torch.autograd.Function):
    """`plain_moments` at the speed of the norm kernels: dx = (d mean + 2 (x - mean) d var) / S."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = _fast_moments(_dense(widened(columns)))
        ctx.save_for_backward(columns, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_var: Tensor) -> Tensor:
        columns, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            moments = plain_moments(widened(columns))
            found: Tensor = torch.autograd.grad(moments, columns, (by_mean, by_var), create_graph=True)[0]
            return found
        slope = by_var * (2 / columns.shape[2])
        constant = by_mean / columns.shape[2] - mean * slope
        dx = torch.addcmul(constant.unsqueeze(2), widened(columns), slope.unsqueeze(2))
        return dx.to(columns.dtype)


def _plain_gradients(
    program: Program, columns: Tensor, tensors: list[Tensor], gradient: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, from the plain operations."""
    inputs = [columns, *tensors]
    y, _, _ = _plain(columns, program, *tensors)
    return _gradients([y], inputs, [gradient], wanted, create_graph=True)


def _fast_gradients(
    program: Program,
    columns: Tensor,
    mean: Tensor,
    var: Tensor,
    tensors: list[Tensor],
    gradient: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """With G = sum_s g and H = sum_s g (x - mean), the tables' gradients are those of the program at (H, G).

    dx = g * scale + (d mean - G * scale) / S + 2 (x - mean) / S * d var.
    """
    values, g = _dense(widened(columns)), widened(gradient)
    g = g.contiguous() if values.is_contiguous() else g.mT.contiguous().mT
    near = mean.to(values.dtype)
    dot, total = (table.double() for table in _sums(values, g, near))
    dot = dot - (mean - near) * total
    with torch.enable_grad():
        wanted_tables = [wanted[0], *wanted]
        leaves = [t.detach().requires_grad_(w) for t, w in zip([mean, var, *tensors], wanted_tables, strict=True)]
        scale, offset = program(*leaves)
    outputs = [t for t in (scale, offset) if t.requires_grad]
    incoming = [t for t, out in ((dot, scale), (total, offset)) if out.requires_grad]
    found = _gradients(outputs, leaves, incoming, wanted_tables) if outputs else [None] * len(leaves)
    if not wanted[0]:
        return [None, *found[2:]]
    positions = values.shape[2]
    scale = scale.detach()
    by_mean = torch.zeros_like(mean) if found[0] is None else found[0]
    slope = torch.zeros_like(var) if found[1] is None else found[1] * (2 / positions)
    constant = (by_mean - total * scale) / positions - mean * slope
    constant, slope, scale = (table.to(values.dtype).unsqueeze(2) for table in (constant, slope, scale))
    dx = torch.empty_like(values)
    for rows in sample_blocks(values):
        torch.addcmul(constant[rows], values[rows], slope[rows], out=dx[rows]).addcmul_(g[rows], scale[rows])
    return [dx.to(columns.dtype), *found[2:]]


def dense_columns(x: Tensor, dim: Dim) -> Tensor:
    """The input as (B, C, S) in float32 at least, without gaps between its values; features have one position."""
    if dim == 0:
        return widened(x).unsqueeze(2)
    return _dense(widened(_columns(x, dim)))


def channel_sums(columns: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (B, C) of sum_s g x and sum_s g, for dense (B, C, S)."""
    g = g.contiguous() if columns.is_contiguous() else g.mT.contiguous().mT
    return _sums(columns, g, columns.new_zeros(columns.shape[:2]))


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], incoming: list[Tensor], wanted: list[bool], create_graph: bool = False
) -> list[Tensor | None]:
    chosen = [t for t, w in zip(inputs, wanted, strict=True) if w]
    found = iter(torch.autograd.grad(outputs, chosen, incoming, create_graph=create_graph, allow_unused=True))
    return [next(found) if w else None for w in wanted]


def _dense(columns: Tensor) -> Tensor:
    """The tensor itself if it lies by channels or by positions without gaps, else a copy that does."""
    return columns if columns.is_contiguous() or columns.mT.is_contiguous() else columns.contiguous()


def _centred(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The differences x - near, near being the float32 mean (B, C), what it lacks of the mean, and the variance."""
    y = torch.empty_like(values)
    parts = []
    for rows in sample_blocks(values):
        block = values[rows]
        near, var = _fast_moments(block)
        torch.sub(block, near.unsqueeze(2), out=y[rows])
        parts.append((near, y[rows].mean(2), var))
    near, rest, var = (torch.cat(tables) for tables in zip(*parts, strict=True))
    return y, near, rest, var


def _fast_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """As `plain_moments`, which reads x at a tenth of the speed of torch's norm kernels."""
    # The kernels' own means lose digits where the mean is large against sigma; a sum by halves keeps them.
    mean = values.mean(2)
    batch, channels, positions = values.shape
    if values.is_contiguous():
        rstd = torch.native_group_norm(values, None, None, batch, channels, positions, channels, 0.0)[2]
        return mean, rstd.view(batch, channels).pow(-2)
    samples = torch.split(values.unsqueeze(3), 1)
    return mean, torch.stack([torch.batch_norm_update_stats(sample, None, None, 0.0)[1] for sample in samples])


def _sums(values: Tensor, g: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (B, C) of sum_s g (x - mean) and sum_s g, by the reduction of batch norm's backward kernel."""
    batch, channels, positions = values.shape
    if values.is_contiguous():
        dot, total = _kernel_sums(values.view(1, -1, positions), g.view(1, -1, positions), mean.flatten())
        return dot.view(batch, channels), total.view(batch, channels)
    samples = zip(torch.split(values.unsqueeze(3), 1), torch.split(g.unsqueeze(3), 1), mean, strict=True)
    dots, totals = zip(*(_kernel_sums(*sample) for sample in samples), strict=True)
    return torch.stack(dots), torch.stack(totals)


def _kernel_sums(x: Tensor, g: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones_like(mean)
    _, dot, total = torch.ops.aten.native_batch_norm_backward(
        g, x, one, None, None, mean, one, True, 0.0, [False, True, True]
    )
    return dot, total
