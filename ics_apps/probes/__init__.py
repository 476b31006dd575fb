"""Numbers about a model and a batch: functions and accumulators, no Lightning.

What the activation monitor reads is offered here; every other probe is a module of its own, such as
`ics_apps.probes.covariate_shift`, and takes an `Objective` or a model.
"""

from __future__ import annotations

from ics_apps.probes.activations.columns import Table, label
from ics_apps.probes.activations.drift import History, gaussian_kl, wasserstein1
from ics_apps.probes.activations.histogram import Histograms, edges
from ics_apps.probes.activations.moments import describe, summarise
from ics_apps.probes.activations.norm_state import batch_moments, batch_noise, running_gap, running_var_gap
from ics_apps.probes.activations.recorder import Recorder
from ics_apps.probes.activations.sampling import first_tensor, locate, read
from ics_apps.probes.activations.saturation import Tails, tails_of
from ics_apps.probes.activations.weights import WeightWatch
from ics_apps.probes.objective import Objective
from ics_apps.probes.preserve import ProbeError, preserved
from ics_apps.probes.selection import Layer, LayerChoice, Selection, kind_of, select_layers

__all__ = [
    "Histograms",
    "History",
    "Layer",
    "LayerChoice",
    "Objective",
    "ProbeError",
    "Recorder",
    "Selection",
    "Table",
    "Tails",
    "WeightWatch",
    "batch_moments",
    "batch_noise",
    "describe",
    "edges",
    "first_tensor",
    "gaussian_kl",
    "kind_of",
    "label",
    "locate",
    "preserved",
    "read",
    "running_gap",
    "running_var_gap",
    "select_layers",
    "summarise",
    "tails_of",
    "wasserstein1",
]
