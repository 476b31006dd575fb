"""`fold_batch_norms`: put the constants of evaluation-mode batch norms into the layers before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ics_apps.norms.convert.before import layers_before
from ics_apps.norms.convert.choose import FoundNorm, find_norms, put
from ics_apps.norms.convert.describe import OldNorm, layout
from ics_apps.norms.convert.parts import core, tensor_of
from ics_apps.norms.convert.report import ConversionReport, ConvertedNorm
from ics_apps.norms.convert.trace import Example
from ics_apps.norms.options import NormError

_KINDS = ("batch", "sync_batch", "batch_frozen")
_NO_LAYER = "no convolution or linear layer feeds it directly and it alone"
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold_batch_norms(model: nn.Module, *, example: Example | None = None) -> ConversionReport:
    """Fold each batch norm in evaluation mode, and each frozen one, into the layer directly before it, in place.

    With s = gamma / sqrt(running_var + eps), a layer of weight W and bias b gets, per output channel,

        W' = s W,  b' = s (b - running_mean) + beta

    and the norm becomes the identity, or the activation that was fused into it. The net is the same in evaluation up
    to rounding, and cannot be trained as before. A norm stays, and its row says why, if it is in training mode, if no
    convolution or linear layer directly precedes it, or if that layer's output is used elsewhere too. A `BatchNorm1d`
    behind a linear layer is taken to see (B, C).

    Args:
        model: In evaluation mode (`model.eval()`).
        example: An input of the model, run once to see which layer feeds which norm; a tensor, a tuple of arguments or
            a dict of named ones. Without it the model is traced symbolically.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()).eval()
        >>> print(fold_batch_norms(net))
        1 norm: 1 replaced, 0 left
        1  16  (B, C, S, S)  BatchNorm2d -> folded into 0
        >>> [type(layer).__name__ for layer in net]
        ['Conv2d', 'Identity', 'ReLU']

    Reference: ours; right for grouped transposed convolutions too.
    """
    norms = [norm for norm in find_norms(model) if isinstance(norm.known, OldNorm) and norm.known.known.entry in _KINDS]
    before = layers_before(model, [norm.name for norm in norms], example) if norms else {}
    rows = tuple(_folded(model, norm, before.get(norm.name)) for norm in norms)
    unseen = example is None and any(row.note == _NO_LAYER for row in rows)
    return ConversionReport(rows, notes=("pass `example`, an input, to find layers by running the model",) * unseen)


def fold_constants(layer: nn.Module, mean: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Make a layer compute (layer(x) - mean) * scale + shift; all three of shape (C,), float64."""
    weight = layer.weight
    if not isinstance(weight, nn.Parameter):
        raise NormError(f"{type(layer).__name__} has no weight of its own to fold into")
    wide = weight.detach().double()
    if isinstance(layer, _TRANSPOSED):
        # Its weight is (C_in, C_out / groups, *kernel): group g owns a block of rows, and in it all its own columns.
        blocks = wide.reshape(layer.groups, -1, *wide.shape[1:])
        wide = (blocks * scale.reshape(layer.groups, 1, -1, *[1] * (wide.dim() - 2))).reshape(wide.shape)
    else:
        wide = wide * scale.reshape(-1, *[1] * (wide.dim() - 1))
    bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else torch.zeros_like(mean)
    with torch.no_grad():
        weight.copy_(wide)
    folded = ((bias - mean) * scale + shift).to(weight.dtype)
    layer.bias = nn.Parameter(folded, requires_grad=weight.requires_grad)


def _folded(model: nn.Module, norm: FoundNorm, layer: str | None) -> ConvertedNorm:
    old = norm.known
    if not isinstance(old, OldNorm):
        raise NormError(f"{norm.name!r} is no batch norm that can be folded: {old}")
    reason = _why_not(model, norm.module, old, layer)
    if layer is not None and not reason:
        fold_constants(model.get_submodule(layer), *_constants(norm.module, old))
        put(model, norm, _behind(old).train(norm.module.training))
    return ConvertedNorm(
        name=" = ".join(norm.names),
        old=type(core(norm.module)).__name__,
        new=None if reason else f"folded into {layer}",
        channels=old.channels,
        layout=layout(old, frozenset()),
        note=reason,
    )


def _why_not(model: nn.Module, module: nn.Module, old: OldNorm, layer: str | None) -> str:
    if module.training and old.known.entry != "batch_frozen":
        return "it is in training mode; call model.eval() first"
    if tensor_of(module, "running_mean") is None:
        return "it has no running statistics"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which would no longer be called with its values"
    if layer is None:
        return _NO_LAYER
    if not old.known.first and not isinstance(model.get_submodule(layer), nn.Linear):
        return f"its channels are the last axis, those of {layer!r} are not"
    if not _computes_its_formula(module, old):
        return "in evaluation it computes something else than a batch norm"
    return ""


def _computes_its_formula(module: nn.Module, old: OldNorm) -> bool:
    """Try it: a subclass may do more than its constants say."""
    mean, scale, shift = _constants(module, old)
    space = 2 if 2 in old.known.dims else int(old.known.dims[0])
    shape = (2, len(mean), *[2] * space) if old.known.first else (2, 3, len(mean))
    column = [1] * space if old.known.first else []
    mean, scale, shift = (value.reshape(-1, *column) for value in (mean, scale, shift))
    kind = next(tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(mean.device, kind)
    with torch.no_grad():
        y = module(x.clone()).double()
        expected = _behind(old)(((x.double() - mean) * scale + shift).to(kind)).double()
    size = float(scale.abs().max() + (mean * scale).abs().max() + shift.abs().max())
    return torch.allclose(y, expected, rtol=0, atol=64 * torch.finfo(kind).eps * max(1.0, size))


def _behind(old: OldNorm) -> nn.Module:
    return old.after[0] if len(old.after) == 1 else nn.Sequential(*old.after) if old.after else nn.Identity()


def _constants(module: nn.Module, old: OldNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, scale and shift of a batch norm in evaluation, in float64."""
    mean, var = tensor_of(module, "running_mean"), tensor_of(module, "running_var")
    if mean is None or var is None:
        raise NormError(f"{type(module).__name__} has no running statistics")
    scale = torch.rsqrt(var.double() + float(old.options.get("eps", 1e-5)))
    if old.gain is not None:
        scale = scale * old.gain.detach().double()
    shift = torch.zeros_like(scale) if old.shift is None else old.shift.detach().double()
    return mean.double(), scale, shift
