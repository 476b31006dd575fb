"""`norm_layer`: our norms in the form that timm and torchvision ask for as `norm_layer=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ics_apps.norms.convert.adapters import NormAct, RankAdapter
from ics_apps.norms.convert.transfer import contains_activation, takes_any_rank
from ics_apps.norms.options import NormError
from ics_apps.norms.registry import Dim, NormSpec, make_norm, parse_norm


def norm_layer(spec: NormSpec, dim: Dim = 2, *, act: Callable[[], nn.Module] | None = None) -> Callable[..., nn.Module]:
    """A function `norm(channels)` for `timm.create_model(name, norm_layer=...)` and torchvision's models.

    timm has two kinds of nets. In most (resnet, hgnet, transformers) `norm_layer` builds norms. In the others
    (efficientnet, mobilenet, densenet, regnet, resnetv2) it has to build norm and activation in one; timm calls it in
    the same way and does not say which activation, so give it here. Where the call shows that an activation is expected
    and none is given, it is refused; the calls of densenet do not show it. `convert_norms` on the finished model needs
    none of this, and serves nets that write to their norms' weights (regnet) if the new norm has none.

    Args:
        spec: The norm.
        dim: 2 for convolutional nets; "tokens" for transformers, whose inputs (*, C) may then have any rank.
        act: Builds the activation, for nets whose `norm_layer` is norm and activation: `nn.ReLU`, `nn.SiLU`.

    Returns:
        A plain function, the only form that timm hands on untouched. `eps` of the caller is taken unless the spec sets
        it; `device` and `dtype` too.

    Example:
        >>> layer = norm_layer({"name": "group", "num_groups": 4}, act=nn.SiLU)
        >>> type(layer(16, apply_act=False)).__name__
        'GroupNorm'
        >>> [type(part).__name__ for part in layer(16).children()]
        ['GroupNorm', 'Sequential']

    Reference: ours.
    """
    only_norm = contains_activation(spec)

    def build(channels: int, *, apply_act: bool | None = None, **call: Any) -> nn.Module:
        activation = act or call.get("act_layer")
        if activation is None and not only_norm and (apply_act or (apply_act is None and "inplace" in call)):
            raise NormError(
                f"this net's norm_layer has to build norm and activation, and norm_layer({spec!r}) builds the norm "
                "only; give the activation, norm_layer(..., act=torch.nn.ReLU), or convert the finished model"
            )
        norm = make_norm(_with_eps(spec, call.get("eps")), channels, dim)
        norm.to(device=call.get("device"), dtype=call.get("dtype"))
        if dim == "tokens" and not takes_any_rank(norm):
            norm = RankAdapter(norm, dim)
        behind = [call.get("drop_layer"), None if only_norm or apply_act is False else activation]
        after = [made() for made in behind if made is not None]
        return NormAct(norm, after) if after else norm

    return build


def _with_eps(spec: NormSpec, eps: float | None) -> NormSpec:
    if eps is None or callable(spec):
        return spec
    entry, options = parse_norm(spec)
    return {"name": entry.name, "eps": eps, **options} if "eps" in entry.options else spec
