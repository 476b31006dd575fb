"""What stands around a new norm where the old one did more: another input rank, or an activation behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ics_apps.norms.registry import Dim


class NormWrapper(nn.Module):
    """A module around `norm` that shows what models read from their norms: weight, bias and eps.

    Its state dict has the keys of `norm` behind "norm."; those of a model before its conversion are accepted too.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    @property
    def weight(self) -> Any:
        """The norm's weight."""
        return self.norm.weight

    @property
    def bias(self) -> Any:
        """The norm's bias."""
        return self.norm.bias

    @property
    def eps(self) -> Any:
        """The norm's eps."""
        return self.norm.eps

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.partition(".")[0] not in self._modules:
                state_dict[f"{prefix}norm.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class RankAdapter(NormWrapper):
    """Lets a norm that was built for one rank take inputs of any rank with the channels at the same end.

    Positions are a set to every norm, so their axes can be merged or added without a change of the result: inputs
    (B, C, *S) are seen as (B, C, S) or (B, C, S, S), inputs (*, C) as (B, L, C). Nothing is copied.

    Args:
        norm: Built for `dim`.
        dim: 1 or 2 for channels first, "tokens" for channels last.
    """

    def __init__(self, norm: nn.Module, dim: Dim) -> None:
        super().__init__(norm)
        self.dim = dim

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        """Reshape, normalise, reshape back."""
        y: Tensor = self.norm(self._seen(x), **conditions)
        return y.reshape(x.shape)

    def _seen(self, x: Tensor) -> Tensor:
        wanted = 3 if self.dim == "tokens" else 2 + int(self.dim)
        # A missing axis is added, surplus ones are merged, always where positions are: behind B or behind C.
        if self.dim == "tokens":
            return x.flatten(1, -2) if x.dim() > wanted else x[(slice(None), *[None] * (wanted - x.dim()))]
        return x.flatten(2, x.dim() - wanted + 2) if x.dim() > wanted else x[(..., *[None] * (wanted - x.dim()))]

    def extra_repr(self) -> str:
        """The dimension that the norm was built for."""
        return f"dim={self.dim!r}"


class NormAct(NormWrapper):
    """A norm, then what the replaced layer did behind its own: dropout, activation."""

    def __init__(self, norm: nn.Module, after: Iterable[nn.Module]) -> None:
        super().__init__(norm)
        self.after = nn.Sequential(*after)

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        """Normalise, then activate."""
        y: Tensor = self.after(self.norm(x, **conditions))
        return y
