"""From a net to the prediction of a whole case: windows, exact tiles, symmetries, ensembles.

No files are written here; that is in `writer`.
"""

from ics_apps.tasks.segmentation.inference.options import InferenceOptions
from ics_apps.tasks.segmentation.inference.predictor import Prediction, Predictor

__all__ = ["InferenceOptions", "Prediction", "Predictor"]
