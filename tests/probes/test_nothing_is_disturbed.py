"""Every probe leaves every kind of model as it came, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ics_apps.probes.batch_composition import batch_composition
from ics_apps.probes.conditioning import input_conditioning
from ics_apps.probes.covariate_shift import ShiftMeter, covariate_shift
from ics_apps.probes.gradient_flow import gradient_flow
from ics_apps.probes.input_drift import InputDrift
from ics_apps.probes.landscape import landscape
from ics_apps.probes.leakage import gradient_leakage
from ics_apps.probes.objective import Objective
from ics_apps.probes.parameter_layers import parameter_layers
from ics_apps.probes.perturbation import perturbation_leakage
from ics_apps.probes.preserve import preserved
from ics_apps.probes.scale_invariance import scale_invariant_weights
from ics_apps.probes.slices import filter_normalised_direction, slice_2d
from ics_apps.probes.spectrum import curvature
from tests.probes.subjects import SUBJECTS, Subject, fingerprint

Probe = Callable[[Subject], object]


def _curvature(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        curvature(objective, max_products=15, starts=1)


def _shift_meter(subject: Subject) -> None:
    meter = ShiftMeter(subject.model, subject.loss)
    meter.before()
    meter.after()


def _input_drift(subject: Subject) -> None:
    drift = InputDrift()
    drift.measure(subject.model, subject.loss)
    drift.measure(subject.model, subject.loss)


def _parameter_layers(subject: Subject) -> None:
    with preserved(subject.model):
        parameter_layers(subject.model, subject.loss)


def _input_conditioning(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        input_conditioning(subject.model, objective.loss)


def _landscape(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        landscape(objective, [0.1, 1.0])


def _slice_2d(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        first, second = (filter_normalised_direction(objective, seed) for seed in (0, 1))
        slice_2d(objective, first, second, [-1.0, 1.0], [0.5])


def _scale_invariant_weights(subject: Subject) -> None:
    with Objective(subject.model, subject.loss) as objective:
        scale_invariant_weights(objective)


PROBES: dict[str, Probe] = {
    "parameter_layers": _parameter_layers,
    "curvature": _curvature,
    "shift_meter": _shift_meter,
    "covariate_shift": lambda s: covariate_shift(s.model, s.loss, s.step, optimizers=s.optimizers),
    "input_drift": _input_drift,
    "input_conditioning": _input_conditioning,
    "landscape": _landscape,
    "slice_2d": _slice_2d,
    "scale_invariant_weights": _scale_invariant_weights,
    "gradient_flow": lambda s: gradient_flow(s.model, [s.loss, s.loss]),
    "gradient_leakage": lambda s: gradient_leakage(s.model, (s.batch,)),
    "batch_composition": lambda s: batch_composition(s.model, s.batch, s.batch.flip(0)),
    "perturbation_leakage": lambda s: perturbation_leakage(s.model, (s.batch,)),
}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return SUBJECTS[request.param]()


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_model_is_the_same_to_the_bit_after_a_probe(subject: Subject, probe: Probe) -> None:
    before = fingerprint(subject.model, subject.optimizers)
    probe(subject)
    assert fingerprint(subject.model, subject.optimizers) == before


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_training_goes_on_as_if_nothing_had_been_measured(subject: Subject, probe: Probe) -> None:
    with preserved(subject.model, subject.optimizers):
        subject.step()
        subject.step()
        expected = _values(subject)
    probe(subject)
    subject.step()
    subject.step()
    assert all(torch.equal(a, b) for a, b in zip(_values(subject), expected, strict=True))


def test_a_step_does_change_the_fingerprint(subject: Subject) -> None:
    before = fingerprint(subject.model, subject.optimizers)
    subject.step()
    after = fingerprint(subject.model, subject.optimizers)
    changed = {name.split(" ")[0] for name in before if before[name] != after[name]}
    assert {"parameter", "optimizer"} <= changed


def _values(subject: Subject) -> list[torch.Tensor]:
    return [value.detach().clone() for value in (*subject.model.parameters(), *subject.model.buffers())]
