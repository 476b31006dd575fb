"""Change the norms of any model: replace them, fold batch norms into the layers before, build them for timm."""

from ics_apps.norms.convert.factory import norm_layer
from ics_apps.norms.convert.fold import fold_batch_norms
from ics_apps.norms.convert.replace import convert_norms
from ics_apps.norms.convert.report import ConversionReport, ConvertedNorm

__all__ = ["ConversionReport", "ConvertedNorm", "convert_norms", "fold_batch_norms", "norm_layer"]
