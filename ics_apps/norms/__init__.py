"""Normalization layers by name: `make_norm("group", 64)`. Importing this package does not import torch."""

from importlib import import_module
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
    from ics_apps.norms.condition import norm_context
    from ics_apps.norms.convert import (
        ConversionReport,
        ConvertedNorm,
        convert_norms,
        fold_batch_norms,
        norm_layer,
    )
    from ics_apps.norms.statistics import StatisticsReport, recompute_statistics

__all__ = [
    "ConversionReport",
    "ConvertedNorm",
    "NormConfig",
    "NormEntry",
    "NormError",
    "NormSpec",
    "NormalizedConcat",
    "StatisticsReport",
    "convert_norms",
    "fold_batch_norms",
    "list_norms",
    "make_norm",
    "norm_context",
    "norm_entry",
    "norm_layer",
    "recompute_statistics",
    "register_norm",
]

_NEED_TORCH = {
    "ConversionReport": "ics_apps.norms.convert",
    "ConvertedNorm": "ics_apps.norms.convert",
    "NormalizedConcat": "ics_apps.norms.blocks",
    "StatisticsReport": "ics_apps.norms.statistics",
    "convert_norms": "ics_apps.norms.convert",
    "fold_batch_norms": "ics_apps.norms.convert",
    "norm_context": "ics_apps.norms.condition",
    "norm_layer": "ics_apps.norms.convert",
    "recompute_statistics": "ics_apps.norms.statistics",
}


def __getattr__(name: str) -> Any:
    """Import a public name that needs torch when it is first asked for (PEP 562)."""
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
