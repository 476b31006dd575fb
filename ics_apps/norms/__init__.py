"""Normalization layers by name: `make_norm("group", 64)`. Importing this package does not import torch."""

from typing import TYPE_CHECKING, Any

from ics_apps.norms import catalog  # noqa: F401 (registers the entries)
from ics_apps.norms.registry import (
    NormConfig,
    NormEntry,
    NormError,
    NormSpec,
    list_norms,
    make_norm,
    norm_entry,
    register_norm,
)

if TYPE_CHECKING:
    from ics_apps.norms.blocks import NormalizedConcat

__all__ = [
    "NormConfig",
    "NormEntry",
    "NormError",
    "NormSpec",
    "NormalizedConcat",
    "list_norms",
    "make_norm",
    "norm_entry",
    "register_norm",
]


def __getattr__(name: str) -> Any:
    """Import the one public name that needs torch when it is first asked for (PEP 562)."""
    if name == "NormalizedConcat":
        from ics_apps.norms.blocks import NormalizedConcat

        return NormalizedConcat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
