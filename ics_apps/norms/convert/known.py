"""The norm classes of torch, torchvision, timm and transformers, and what each one computes. No module is changed here.

Classes are known by package and name, so none of these packages is imported. Classes that follow no list (the RMS and
layer norms of transformers) are recognised by what they compute: see `probe`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ics_apps.norms.registry import Dim


@dataclass(frozen=True)
class KnownNorm:
    """What a foreign norm class is.

    Attributes:
        entry: The registry's norm that computes the same; None if there is none.
        first: Whether channels are axis 1 (else the last axis).
        dims: The input ranks it may see, as values of `dim`; ignored where channels are last.
        activation: A class that stands in for an activation which is part of the formula, if the norm is replaced.
        by_default: Whether it is replaced without being asked for by `where`.
    """

    entry: str | None
    first: bool = True
    dims: tuple[Dim, ...] = (0, 1, 2, 3)
    activation: type[nn.Module] | None = None
    by_default: bool = True


def known_class(kind: type[nn.Module]) -> KnownNorm | None:
    """The row of a class, or of the listed class that it inherits its forward pass from.

    Example:
        >>> known_class(nn.BatchNorm2d).entry, known_class(nn.Conv2d)
        ('batch', None)
    """
    bases: tuple[Any, ...] = kind.__mro__
    for base in bases:
        known = _TABLE.get(f"{base.__module__.partition('.')[0]}.{base.__name__}")
        if known is not None:
            return known if bases[0].forward is base.forward else None
    return None


def _named(package: str, names: str, known: KnownNorm) -> dict[str, KnownNorm]:
    return {f"{package}.{name}": known for name in names.split()}


_IMAGES = (2,)
_CHANNELS_LAST_LAYER = KnownNorm("layer_c", first=False)
_CHANNELS_LAST_RMS = KnownNorm("rms", first=False)
_LAYER_C = KnownNorm("layer_c", dims=_IMAGES)
_FROZEN = KnownNorm("batch_frozen", dims=_IMAGES)
_BATCH = KnownNorm("batch", dims=_IMAGES)

_TABLE: dict[str, KnownNorm] = {
    **_named("torch", "BatchNorm1d", KnownNorm("batch", dims=(0, 1))),
    **_named("torch", "BatchNorm2d", _BATCH),
    **_named("torch", "BatchNorm3d", KnownNorm("batch", dims=(3,))),
    **_named("torch", "SyncBatchNorm", KnownNorm("sync_batch")),
    **_named("torch", "InstanceNorm1d", KnownNorm("instance", dims=(1,))),
    **_named("torch", "InstanceNorm2d", KnownNorm("instance", dims=_IMAGES)),
    **_named("torch", "InstanceNorm3d", KnownNorm("instance", dims=(3,))),
    **_named("torch", "GroupNorm", KnownNorm("group")),
    **_named("torch", "LayerNorm", _CHANNELS_LAST_LAYER),
    **_named("torch", "RMSNorm", _CHANNELS_LAST_RMS),
    **_named("torch", "LocalResponseNorm", KnownNorm("local_response", dims=(1, 2, 3))),
    **_named("torchvision", "FrozenBatchNorm2d", _FROZEN),
    **_named("torchvision", "LayerNorm2d", _LAYER_C),
    **_named("timm", "BatchNormAct2d SplitBatchNorm2d InplaceAbn", _BATCH),
    **_named("timm", "SyncBatchNormAct", KnownNorm("sync_batch")),
    **_named("timm", "FrozenBatchNormAct2d", _FROZEN),
    **_named("timm", "GroupNorm GroupNormAct", KnownNorm("group")),
    **_named("timm", "GroupNorm1 GroupNorm1Act", KnownNorm("layer_chw")),
    **_named("timm", "LayerNorm LayerNormFp32 LayerNormAct LayerNormActFp32", _CHANNELS_LAST_LAYER),
    **_named("timm", "LayerNorm2d LayerNorm2dFp32 LayerNormExp2d LayerNormAct2d LayerNormAct2dFp32", _LAYER_C),
    **_named("timm", "RmsNorm RmsNormFp32 RmsNormAct RmsNormActFp32", _CHANNELS_LAST_RMS),
    **_named("timm", "RmsNorm2d RmsNorm2dFp32 RmsNormAct2d RmsNormAct2dFp32", KnownNorm("rms", dims=_IMAGES)),
    **_named("timm", "SimpleNorm SimpleNormFp32", KnownNorm(None, first=False)),
    **_named("timm", "SimpleNorm2d SimpleNorm2dFp32", KnownNorm(None, dims=_IMAGES)),
    **_named("timm", "EvoNorm2dB0", KnownNorm("evonorm_b0", dims=_IMAGES, activation=nn.ReLU)),
    **_named("timm", "EvoNorm2dB1 EvoNorm2dB2", KnownNorm(None, dims=_IMAGES, activation=nn.ReLU)),
    **_named("timm", "EvoNorm2dS0", KnownNorm("evonorm_s0", dims=_IMAGES, activation=nn.SiLU)),
    **_named("timm", "EvoNorm2dS0a", KnownNorm(None, dims=_IMAGES, activation=nn.SiLU)),
    **_named("timm", "EvoNorm2dS1 EvoNorm2dS1a EvoNorm2dS2 EvoNorm2dS2a", KnownNorm(None, dims=_IMAGES)),
    **_named("timm", "FilterResponseNormTlu2d", KnownNorm("filter_response", dims=_IMAGES, activation=nn.ReLU)),
    **_named("timm", "FilterResponseNormAct2d", KnownNorm(None, dims=_IMAGES)),
    **_named("timm", "GlobalResponseNorm", KnownNorm("global_response", dims=_IMAGES, by_default=False)),
    **_named("transformers", "ConvNextV2GRN", KnownNorm("global_response", first=False, by_default=False)),
    **_named("transformers", "BitGroupNormActivation", KnownNorm("group", dims=_IMAGES)),
    **_named("detectron2", "FrozenBatchNorm2d", _FROZEN),
    **_named("detectron2", "LayerNorm", _LAYER_C),
    # Ours; their rank, or the axis of their channels, is an attribute of the layer.
    **_named("ics_apps", "FrozenBatchNorm", KnownNorm("batch_frozen")),
    **_named("ics_apps", "GroupNorm", KnownNorm("group")),
    **_named("ics_apps", "InstanceNorm", KnownNorm("instance")),
    **_named("ics_apps", "LayerNorm SmoothLayerNorm", KnownNorm("layer_c")),
    **_named("ics_apps", "RMSNorm", KnownNorm("rms")),
    **_named("ics_apps", "SmoothBatchNorm", KnownNorm("batch")),
    **_named("ics_apps", "FilterResponseNorm", KnownNorm("filter_response", activation=nn.ReLU)),
    **_named("ics_apps", "EvoNormB0", KnownNorm("evonorm_b0", activation=nn.ReLU)),
    **_named("ics_apps", "EvoNormS0", KnownNorm("evonorm_s0", activation=nn.SiLU)),
    **_named("ics_apps", "GlobalResponseNorm", KnownNorm("global_response", by_default=False)),
}
