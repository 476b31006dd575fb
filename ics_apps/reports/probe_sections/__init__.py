"""The sections about what the probes measured, one a probe; those whose table a run does not hold are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ics_apps.reports.parts import Section
from ics_apps.reports.probe_sections.layers import (
    conditioning_section,
    gradient_flow_section,
    input_drift_section,
)
from ics_apps.reports.probe_sections.samples import composition_section, leakage_section
from ics_apps.reports.probe_sections.shift import ics_section
from ics_apps.reports.probe_sections.surface import hessian_section, landscape_section
from ics_apps.reports.probe_sections.weights import scale_invariance_section

if TYPE_CHECKING:
    from ics_apps.reports.run_files import RunFiles

__all__ = ["probe_sections"]

_BEFORE_CURVATURE: Final = (
    ("ics", ics_section),
    ("input_drift", input_drift_section),
    ("landscape", landscape_section),
)
_AFTER_CURVATURE: Final = (
    ("conditioning", conditioning_section),
    ("leakage", leakage_section),
    ("batch_composition", composition_section),
    ("scale_invariance", scale_invariance_section),
    ("gradient_flow", gradient_flow_section),
)
_NOT_PROBED: Final = (
    "This run was not probed: add _watch/probes to the recipe of ics-apps run, or callbacks such as "
    "ics_apps.callbacks.ICSMonitor to the trainer, and run again, and internal covariate shift, the loss landscape, "
    "the Hessian, leakage between samples and more are drawn here."
)
_NOTHING_YET: Final = (
    "The probes were switched on and have measured nothing yet: probes/ holds empty tables. A probe that could not "
    "measure warned of it while the run trained."
)


def probe_sections(run: RunFiles) -> tuple[Section, ...]:
    """Build the sections of the probes.

    Args:
        run: Files of a run.

    Returns:
        One section for each probe that measured; one that says how to get them where none did.
    """
    tables = run.probes
    if not tables:
        missing = _NOT_PROBED if tables is None else _NOTHING_YET
        return (Section("probes", "Probes", missing=missing),)
    before = [build(tables[name]) for name, build in _BEFORE_CURVATURE if name in tables]
    curvature = (tables.get("hessian"), tables.get("spectral_density"))
    between = [hessian_section(*curvature)] if any(table is not None for table in curvature) else []
    after = [build(tables[name]) for name, build in _AFTER_CURVATURE if name in tables]
    return (*before, *between, *after)
