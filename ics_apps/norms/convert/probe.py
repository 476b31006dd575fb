"""Recognise a layer or RMS norm of an unlisted class by what it computes on a random input."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ics_apps.norms.convert.known import KnownNorm


def recognised(norm: nn.Module, eps: float) -> tuple[KnownNorm, float] | None:
    """Which of layer and RMS norm, over which end's channels, a module computes; None if neither.

    The module runs once or twice on a small input, without gradients and hooks.

    Returns:
        What it is, and what its formula adds to its weight: 0, or 1 where the gain is 1 + weight (Gemma).
    """
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() == 0 or weight.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    channels = weight.numel()
    for first, shape in ((False, (2, 3, channels)), (True, (2, channels, 2, 3))):
        # Not centred, so that layer and RMS norm differ.
        x = (torch.randn(shape, generator=generator) + 0.7).to(weight.device, weight.dtype)
        y = _output(norm, x)
        if y is None or y.shape != x.shape:
            continue
        x, y = (x.movedim(1, -1), y.movedim(1, -1)) if first else (x, y)
        for entry, formula in _FORMULAS.items():
            for offset in (0.0, 1.0):
                expected = formula(x.double(), eps) * (weight.double().flatten() + offset) + _shift(norm)
                if torch.allclose(y.double(), expected, rtol=0, atol=_tolerance(y)):
                    return KnownNorm(entry, first=first, dims=(2,)), offset
    return None


def second_argument(norm: nn.Module) -> str | None:
    """The name of what a module's forward pass takes beside its input, if anything."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for p in inspect.signature(norm.forward).parameters.values() if p.kind not in kinds]
    return names[1] if len(names) > 1 else None


def _layer(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)


def _rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


_FORMULAS: dict[str, Callable[[Tensor, float], Tensor]] = {"layer_c": _layer, "rms": _rms}


def _output(norm: nn.Module, x: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            y = norm.forward(x)
    except Exception:
        # Whatever an unknown class raises on this shape, it does not take it.
        return None
    return y if isinstance(y, Tensor) else None


def _shift(norm: nn.Module) -> Tensor | float:
    bias = getattr(norm, "bias", None)
    return bias.detach().double().flatten() if isinstance(bias, Tensor) else 0.0


def _tolerance(y: Tensor) -> float:
    return 64 * torch.finfo(y.dtype).eps * max(1.0, float(y.abs().max()))
