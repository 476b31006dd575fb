"""Numbers about a model and a batch: functions and accumulators, no Lightning."""

from __future__ import annotations

from ics_apps.probes.drift import History, gaussian_kl, wasserstein1
from ics_apps.probes.moments import batch_moments, running_gap, summarise
from ics_apps.probes.recorder import Recorder
from ics_apps.probes.sampling import first_tensor, locate, read
from ics_apps.probes.saturation import Tails, tails_of
from ics_apps.probes.taps import Layer, LayerChoice, Selection, kind_of, select_layers

__all__ = [
    "History",
    "Layer",
    "LayerChoice",
    "Recorder",
    "Selection",
    "Tails",
    "batch_moments",
    "first_tensor",
    "gaussian_kl",
    "kind_of",
    "locate",
    "read",
    "running_gap",
    "select_layers",
    "summarise",
    "tails_of",
    "wasserstein1",
]
